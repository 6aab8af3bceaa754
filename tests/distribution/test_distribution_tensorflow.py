"""Compare TensorFlow's strategies, in real processes, with one device."""

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile

import distributed_model
import keras
import numpy as np
import pytest
from backend import BACKEND
from paths import ROOT, SUPPORT
from run_once import run_script_once

if BACKEND != "tensorflow":
    pytest.skip("tf.distribute is TensorFlow's", allow_module_level=True)

import distributed_tensorflow
import tensorflow as tf

from keras_moe.distribution import referee, tensorflow_workers
from keras_moe.distribution.tensorflow_workers import data_parallel

TOLERANCE = 1e-5


def start(kind, folder, runs="everything", **environment):
    """Start `distributed_tensorflow.py`; return the process and its output."""
    paths = [
        str(SUPPORT),
        str(ROOT),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    output = tempfile.TemporaryFile("w+")
    process = subprocess.Popen(
        [sys.executable, "distributed_tensorflow.py", kind, folder, runs],
        cwd=SUPPORT,
        env=os.environ | environment,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    return process, output


def start_workers(folder):
    """Start two processes on ports that are free now."""
    with socket.create_server(("localhost", 0)) as a:
        with socket.create_server(("localhost", 0)) as b:
            ports = [s.getsockname()[1] for s in (a, b)]
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return [
        start(
            "worker",
            folder,
            TF_CONFIG=json.dumps(
                {"cluster": cluster, "task": {"type": "worker", "index": i}}
            ),
        )
        for i in range(2)
    ]


def finish(started):
    """Wait for all; raise with the last lines of a process that failed."""
    try:
        for process, _ in started:
            process.wait(timeout=240)
    finally:
        for process, _ in started:
            process.kill()
    for process, output in started:
        with output:
            output.seek(0)
            assert process.wait() == 0, output.read()[-3000:]


@pytest.fixture(scope="module")
def alone():
    """Return the results of one device, in this process."""
    x, y = distributed_model.make_data()
    model = distributed_model.make_model()
    return distributed_tensorflow.use(model, x, y, batch_size=16)


@pytest.fixture(scope="module")
def own_step():
    """Return the results of a custom training step on one device."""
    found = distributed_tensorflow.train_own_step()
    return {f"own_step/{name}": value for name, value in found.items()}


def check(path, alone):
    found = dict(np.load(path))
    if "losses" in alone:
        assert len(found["losses"]) == distributed_model.STEPS
        assert np.any(found["moe/router/expert_bias"])
    worst = distributed_model.furthest(found, alone)
    assert worst[0] <= TOLERANCE, worst


def check_saved(path, alone):
    """Assert that a file saved under a strategy predicts the same alone."""
    x, _ = distributed_model.make_data()
    model = keras.models.load_model(path)
    outputs = model.predict(x, 16, verbose=0)
    assert np.max(np.abs(outputs - alone["predicted"])) <= TOLERANCE


def check_xla(path, alone):
    """Assert that XLA predicts the same, and that `fit` refuses XLA."""
    found = np.load(path)
    outputs = found["predicted"]
    assert np.max(np.abs(outputs - alone["predicted"])) <= TOLERANCE
    assert "`jit_compile` must be False" in str(found["message"])


def test_two_mirrored_devices_are_one(tmp_path, alone):
    finish([start("mirrored", tmp_path, "fit")])
    check(tmp_path / "mirrored-0.npz", alone)
    check_saved(tmp_path / "mirrored.keras", alone)


def test_a_custom_step_on_two_mirrored_devices(tmp_path, own_step):
    """`data_parallel` repairs what Keras does with the losses."""
    finish([start("mirrored", tmp_path, "own_step")])
    check(tmp_path / "mirrored-0.npz", own_step)


@pytest.mark.slow
def test_two_mirrored_devices_under_xla(tmp_path, alone):
    finish([start("mirrored", tmp_path)])
    check_xla(tmp_path / "xla.npz", alone)


@pytest.mark.slow
def test_two_workers_are_one_device(tmp_path, alone, own_step):
    finish(start_workers(tmp_path))
    for index in range(2):
        check(tmp_path / f"worker-{index}.npz", alone | own_step)
    check_saved(tmp_path / "worker.keras", alone)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """Return the results of mirrored_tensorflow.py."""
    folder = run_script_once(tmp_path_factory, "mirrored_tensorflow")
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accumulation", "EMA"])
def test_keras_still_fails_under_mirrored_strategy_with(mirrored, name):
    """Keras fails with a Dense layer.

    If this test fails, Keras has fixed the fault: remove the row from
    `docs/from-laptop-to-cluster.md`.
    """
    assert mirrored["none"] < 1e-6
    assert "merge_call" in mirrored[name]


@pytest.mark.parametrize(
    "name", ["global_clipnorm", "clipvalue", "short batch"]
)
def test_keras_is_still_wrong_under_mirrored_strategy_with(mirrored, name):
    """Keras trains a Dense layer wrongly; see the test above."""
    assert mirrored["none"] < 1e-6
    assert mirrored[name] > 1e-3


@pytest.mark.parametrize("how", ["function", "jit"])
def test_a_mixture_in_a_nested_function_names_the_remedy(mirrored, how):
    """A Dense layer needs no other replica until its gradients are applied."""
    assert mirrored[f"dense {how}"] is None
    text = mirrored[f"mixture {how}"]
    assert "`fn` of `strategy.run(fn)` must be a plain function" in text


def mirrored_model(compiled=True):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        return distributed_model.make_model(compiled=compiled)


def test_the_class_and_config_of_a_model_stay(tmp_path):
    model = mirrored_model(compiled=False)
    before = type(model), model.get_config()
    assert data_parallel(model) is model
    step = model.train_step
    assert data_parallel(model).train_step is step
    assert (type(model), model.get_config()) == before
    x, _ = distributed_model.make_data(1)
    outputs = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for other in (loaded, clone, copy.deepcopy(model)):
        assert np.array_equal(other.predict(x, verbose=0), outputs)


def test_keras_without_the_faults_is_not_patched(monkeypatch):
    monkeypatch.setattr(tensorflow_workers, "has_several_workers", bool)
    monkeypatch.setattr(tensorflow_workers, "BUILD_FAULT", "not in Keras")
    monkeypatch.setattr(tensorflow_workers, "LOGS_FAULT", "not in Keras")
    model = data_parallel(mirrored_model())
    assert "_maybe_symbolic_build" not in vars(model)
    x, y = distributed_model.make_data(1)
    assert model.test_step((x, y))["loss"].shape == ()


def test_keras_without_readable_source_causes_a_warning(monkeypatch):
    monkeypatch.setattr(tensorflow_workers, "has_several_workers", bool)
    monkeypatch.setattr(keras.Model, "_maybe_symbolic_build", None)
    with pytest.warns(UserWarning, match="It is unknown whether Keras 3"):
        data_parallel(mirrored_model())


def test_a_training_step_without_rows_fails():
    step = tensorflow_workers._of_rows(lambda data: tf.reduce_sum(data[0]))
    assert step((tf.ones((2, 3)), None)) == 6
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        step((tf.ones((0, 3)), None))
    assert "step without rows in process 0" in referee.named_in(
        str(raised.value)
    )


def test_errors():
    with pytest.raises(ValueError, match="`model` must be a keras.Model"):
        data_parallel(keras.layers.Dense(1))
    model = distributed_model.make_model()
    with pytest.raises(ValueError, match="Received: strategy=none"):
        data_parallel(model)
    central = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"])
    with central.scope():
        model = distributed_model.make_model()
    with pytest.raises(ValueError, match="strategy=CentralStorageStrategy"):
        data_parallel(model)
