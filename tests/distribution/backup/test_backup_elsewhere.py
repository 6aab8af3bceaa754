"""Resume an epoch in another layout: its logs include all its batches."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import BACKEND
from distributed_model import BATCH
from paths import SUPPORT
from run_once import run_once

from keras_moe.distribution.backup import BackupAndResume
from keras_moe.distribution.backup.metric_states import (
    MetricStates,
    combine,
    saved_states,
)
from keras_moe.distribution.backup.processes import Processes, processes_of
from keras_moe.distribution.launching import launch

EPOCHS, STEPS = 2, 3  # the same as in the script
SCRIPT = SUPPORT / "resume_elsewhere.py"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Return the logs of an undisturbed run, and of resumed runs."""

    def train(folder):
        if BACKEND == "torch":
            code = launch(SCRIPT, str(folder), backend=BACKEND, processes=2)
            assert code == 0
        else:
            command = [sys.executable, SCRIPT, folder]
            subprocess.run(command, check=True, timeout=300)

    folder = run_once(tmp_path_factory, "elsewhere", train)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow  # seven training runs; TensorFlow traces each of them
@pytest.mark.parametrize("layouts", ["1 to 2", "2 to 1", "2 to 2"])
def test_the_logs_are_those_of_one_process(logs, layouts):
    """The logs include integers, and states that are not sums."""
    alone, resumed = logs["alone"], logs[layouts]
    assert resumed.keys() == alone.keys()
    assert resumed["rows"] == [STEPS * BATCH] * EPOCHS
    assert resumed["steps"] == [STEPS] * EPOCHS
    for name in ("loss", "accuracy", "label"):
        np.testing.assert_allclose(resumed[name], alone[name], atol=1e-5)


# --- states as numbers -------------------------------------------------------


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "aggregation, expected",
    [
        ("sum", [9, 12]),
        ("mean", [3, 4]),
        ("none", [3, 4]),
        (None, [3, 4]),
        ("only_first_replica", [1, 2]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_three_states_become_one(aggregation, expected, dtype):
    rows = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    found = combine(rows, aggregation)
    assert found.dtype == dtype
    assert found.tolist() == expected


@pytest.mark.one_backend
def test_which_states_are_restored():
    """Two processes have saved; on JAX, each of them has the states of both."""

    def processes(count, index=0, replicas=1):
        found = Processes()
        found.count, found.index, found.replicas = count, index, replicas
        return found

    def take(backend, now, replicas=1):
        manifest = {"schema": 2, "backend": backend, "processes": 2}

        def read(index):
            first = 10 * index
            return [np.arange(first, first + replicas)]

        states = saved_states(read, manifest, now)
        return states.rows[0].tolist(), states.own

    own = BACKEND
    other = "tensorflow" if own != "tensorflow" else "torch"
    assert take(own, processes(2, index=1)) == ([10], True)
    assert take(own, processes(3, index=1)) == (
        ([0], False) if own == "jax" else ([0, 10], False)
    )
    assert take(own, processes(2, replicas=2), 2) == ([0, 1], True)
    assert take(other, processes(2)) == ([0, 10], False)
    assert take(other, processes(1), 2) == ([0, 1, 10, 11], False)
    assert take("jax", processes(1)) == ([0], False)


def restored(processes):
    """Return a variable per aggregation, restored from two rows."""
    variables = [
        keras.Variable(np.ones(2), aggregation=aggregation)
        for aggregation in ("sum", "mean", "only_first_replica")
    ]
    rows = [np.array([[1, 2], [3, 4]], "float32")] * 3
    MetricStates(rows, own=False).restore(variables, processes)
    return variables


@pytest.fixture
def own_processes():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    return processes_of(model)


def test_one_process_restores_the_whole_state(own_processes):
    """`read_own` returns the combined state afterwards."""
    variables = restored(own_processes)
    found = [own_processes.read_own(v).tolist() for v in variables]
    assert found == [[[4, 6]], [[2, 3]], [[1, 2]]]


@pytest.mark.skipif(BACKEND != "torch", reason="others have no such process")
def test_the_second_process_restores_zero_of_a_sum(own_processes):
    own_processes.index, own_processes.count = 1, 2
    variables = restored(own_processes)
    found = [own_processes.read(variable).tolist() for variable in variables]
    assert found == [[0, 0], [2, 3], [1, 2]]


def fit(folder, rows=16, metrics=("mae",), **arguments):
    keras.utils.set_random_seed(0)
    x = np.linspace(0, 1, rows, dtype="float32")[:, None]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=list(metrics))
    arguments = {"batch_size": 4, "epochs": 2, "verbose": 0, **arguments}
    stop, arguments = arguments.pop("stop", []), arguments
    backup = BackupAndResume(folder, save_freq=3)
    return model.fit(x, x, callbacks=[backup, *stop], **arguments)


class StopAfterThree(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


@pytest.fixture
def within_epoch(tmp_path):
    """Return a backup from after the third of four batches."""
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop=[StopAfterThree()])
    return tmp_path


def test_other_metrics_within_an_epoch_are_refused(within_epoch):
    with pytest.raises(ValueError, match="`metrics` must be those of the"):
        fit(within_epoch, metrics=[])


def test_an_epoch_that_is_too_short_is_refused(within_epoch):
    """Without the error, batches of the next epoch would be skipped, too."""
    with pytest.warns(UserWarning, match="batch 3 of 4 of an epoch, which now"):
        with pytest.raises(ValueError, match="an epoch of 2 batches, but 3"):
            fit(within_epoch, rows=8)


def test_a_changed_number_of_batches_causes_a_warning(within_epoch):
    """Another number of processes needs another batch size per process."""
    with pytest.warns(UserWarning, match="which now has 8 batches"):
        fit(within_epoch, batch_size=2)
