"""Stop training at any point, resume it, and compare with undisturbed training.

`test_kill.py` tests processes that are killed.
"""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from backend import BACKEND
from backup_training import (
    BATCHES,
    Shuffled,
    StopAfter,
    Stopped,
    fit,
    make_data,
    make_model,
    same,
    weights_of,
)
from keras import layers
from paths import SUPPORT

from keras_moe.distribution.backup import (
    BackupAndResume,
    generations,
    load_backup,
    state,
)
from keras_moe.distribution.backup.processes import processes_of


@pytest.fixture(scope="module")
def undisturbed():
    """Return the weights and losses of training without the callback."""
    model, history = fit()
    return weights_of(model), history


@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_training_stopped_three_times_equals_undisturbed_training(
    tmp_path, undisturbed, save_freq
):
    """Dropout, Adam, data order, and history are bitwise equal.

    The training is stopped before the first save, within an epoch, and after
    the last batch of an epoch.
    """
    for stop in ((0, 1), (1, 2), (2, BATCHES - 1)):
        with pytest.raises(Stopped):
            fit(BackupAndResume(tmp_path, save_freq), StopAfter(*stop))
    model, history = fit(BackupAndResume(tmp_path, save_freq))
    weights, expected = undisturbed
    assert history == expected
    assert same(weights_of(model), weights)


def test_other_data_and_several_steps_per_execution(tmp_path):
    """The data set draws its order by NumPy, and an execution has two steps."""
    if BACKEND == "torch":
        several = {}  # Keras has one step per execution on PyTorch
    else:
        several = {"steps_per_execution": 2}

    def run(*callbacks):
        return fit(
            *callbacks, model=make_model(**several), data=Shuffled(*make_data())
        )

    model, expected = run()
    with pytest.raises(Stopped):
        run(BackupAndResume(tmp_path, 2), StopAfter(1, 3))
    resumed, history = run(BackupAndResume(tmp_path, 2))
    assert history == expected
    assert same(weights_of(resumed), weights_of(model))


def test_a_finished_run_is_loaded_and_extended(tmp_path, undisturbed):
    weights, expected = undisturbed
    fit(BackupAndResume(tmp_path), epochs=2)
    model, history = fit(BackupAndResume(tmp_path), epochs=2)
    assert history == {name: v[:2] for name, v in expected.items()}
    assert model._initial_epoch is None  # another `fit` starts from 0
    with pytest.warns(UserWarning, match="must be 2 or more"):
        fit(BackupAndResume(tmp_path), epochs=1)
    model, history = fit(BackupAndResume(tmp_path))
    assert history == expected
    assert same(weights_of(model), weights)
    assert model._initial_epoch is None


def test_early_stopping_finishes_a_run(tmp_path):
    """No improvement reaches `min_delta`, so two of five epochs are trained."""

    def run():
        stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9)
        return fit(stop, BackupAndResume(tmp_path), epochs=5)

    model, history = run()
    assert len(history["loss"]) == 2
    again, same_history = run()
    assert same_history == history
    assert same(weights_of(again), weights_of(model))


def test_a_stop_within_an_epoch_does_not_finish_a_run(tmp_path, undisturbed):
    """A callback may stop training when the job is about to end."""

    class StopWithinEpoch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 2

    fit(StopWithinEpoch(), BackupAndResume(tmp_path, 2))
    assert fit(BackupAndResume(tmp_path, 2))[1] == undisturbed[1]


def test_saves_are_deleted_on_request(tmp_path):
    fit(BackupAndResume(tmp_path, delete_checkpoint=True))
    assert not generations.generations(tmp_path)


def test_weights_load_into_a_model_that_is_not_compiled(tmp_path):
    model, _ = fit(BackupAndResume(tmp_path))
    other = keras.models.clone_model(model)
    load_backup(other, tmp_path)
    x, _ = make_data()
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    with pytest.raises(FileNotFoundError, match="must contain a save"):
        load_backup(other, tmp_path / "none")


def test_half_precision_is_saved_exactly():
    """NumPy has no bfloat16, so the weights are saved as float32."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(1, dtype="bfloat16")]
    )
    model.compile("sgd", "mse")
    kernel = np.array([[1.0], [-2.5], [3.140625]])  # exact in bfloat16
    model.layers[0].kernel.assign(kernel)
    saved = dict(state.arrays_of(model, processes_of(model)))
    found = next(a for a in saved.values() if a.shape == (3, 1))
    assert found.dtype == "float32"
    assert np.array_equal(found, kernel)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is JAX's")
def test_eight_devices_are_resumed_on_four_and_on_one(tmp_path):
    """Files hold whole arrays, and sums in another order differ by rounding."""
    script = SUPPORT / "backup_layouts.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["resumed"]) == 3
    np.testing.assert_allclose(
        found["resumed"], found["alone"], rtol=0, atol=1e-5
    )


def test_another_models_saves_are_refused(tmp_path):
    fit(BackupAndResume(tmp_path))
    with pytest.raises(ValueError, match="`directory` must contain") as error:
        fit(BackupAndResume(tmp_path), model=make_model(5, name="other"))
    text = str(error.value)
    assert "'model' with Adam" in text and "'other' with Adam" in text
    assert "(4, 6)" in text and "(4, 5)" in text
    with pytest.raises(ValueError, match="with Lion"):
        fit(BackupAndResume(tmp_path), model=make_model(optimizer="lion"))


@pytest.mark.parametrize(
    "arguments", [{"save_freq": 0}, {"save_freq": "batch"}, {"keep": 1}]
)
def test_arguments_out_of_their_range(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        BackupAndResume(tmp_path, **arguments)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="`fit` builds it before the callbacks"
)
def test_a_model_must_be_built(tmp_path):
    class Lazy(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Lazy()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must be built"):
        fit(BackupAndResume(tmp_path), model=model)


def test_training_resumes_from_the_previous_save(tmp_path, undisturbed):
    fit(BackupAndResume(tmp_path))
    newest, _ = generations.generations(tmp_path)
    arrays = newest / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"arrays.npz has \d+ of \d+ bytes"):
        model, history = fit(BackupAndResume(tmp_path))
    assert history == undisturbed[1]
    assert same(weights_of(model), undisturbed[0])
    saves = generations.generations(tmp_path)
    assert len(saves) == 2
    for generation in saves:
        generations.read_manifest(generation)  # both are whole
        (generation / "manifest.json").unlink()
    with pytest.raises(ValueError, match="Delete it to start again"):
        fit(BackupAndResume(tmp_path))
