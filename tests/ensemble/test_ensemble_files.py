"""Save, load, and export ensembles, on this and on other backends."""

import shutil

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from elsewhere import run_on
from zoo import WIDTH

from keras_moe import Ensemble, MoEBlock
from keras_moe.ensemble import METHODS

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

OTHERS = ("jax", "tensorflow")


def member(plain=False):
    inputs = keras.Input((5, WIDTH))
    x = keras.layers.Dense(WIDTH)(inputs) if plain else MoEBlock(4, 6)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def ensemble_of(method):
    models = [member(), member(plain=True), member()]
    if method == "snapshot":
        return Ensemble(models[0], method, num_snapshots=2)
    return Ensemble(models, method)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Save an ensemble of every method, trained if it has weights to train."""
    folder = tmp_path_factory.mktemp("ensembles")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 5, WIDTH)).astype("float32")
    np.save(folder / "x.npy", x)
    for method in METHODS:
        ensemble = ensemble_of(method)
        ensemble.compile(
            "adam", "sparse_categorical_crossentropy", jit_compile=False
        )
        y = np.arange(6) % 3
        if method in ("weighted", "stacking", "snapshot"):
            ensemble.fit(x, y, epochs=2, verbose=0)
        np.save(folder / f"{method}.npy", ensemble.predict(x, verbose=0))
        ensemble.save(folder / f"{method}.keras")
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_ensemble_is_the_same(folder, method):
    x = np.load(folder / "x.npy")
    again = keras.saving.load_model(folder / f"{method}.keras")
    assert again.method == method
    assert (
        again.get_config() == again.from_config(again.get_config()).get_config()
    )
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), np.load(folder / f"{method}.npy")
    )
    assert again.compiled
    assert not any(model.compiled for model in again.models)


def test_trained_weights_are_saved(folder):
    weighted = keras.saving.load_model(folder / "weighted.keras")
    assert (weighted.member_weights() != weighted.member_weights().mean()).any()
    stacking = keras.saving.load_model(folder / "stacking.keras")
    head = stacking.combiner.meta_model
    assert np.abs(to_numpy(head.correction.kernel)).max() > 1e-4
    first, last = keras.saving.load_model(folder / "snapshot.keras").models
    one, other = first.trainable_weights[0], last.trainable_weights[0]
    assert (to_numpy(one) != to_numpy(other)).any()


def test_a_loaded_ensemble_can_be_trained(folder):
    x = np.load(folder / "x.npy")
    again = keras.saving.load_model(folder / "weighted.keras")
    before = again.member_weights()
    again.fit(x, np.arange(6) % 3, verbose=0)
    assert (again.member_weights() != before).any()


ELSEWHERE = ("median", "stacking", "weighted")


@pytest.fixture(scope="module")
def elsewhere(folder, tmp_path_factory):
    """Load some of PyTorch's files on the other two backends."""
    target = tmp_path_factory.mktemp("elsewhere")
    for name in ("x.npy", *(f"{method}.keras" for method in ELSEWHERE)):
        shutil.copy(folder / name, target)
    for other in OTHERS:
        run_on(other, "load_elsewhere", target)
    return target


@pytest.mark.skipif(
    BACKEND != "torch", reason="files from PyTorch are loaded on the others"
)
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("method", ELSEWHERE)
def test_loading_on_another_backend(folder, elsewhere, method, other):
    here = np.load(folder / f"{method}.npy")
    there = np.load(elsewhere / f"{method}.{other}.npy")
    np.testing.assert_allclose(there, here, atol=1e-5)


@pytest.mark.every_backend
@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the SavedModel is TensorFlow's"
)
@pytest.mark.parametrize("method", ("hard_vote", *ELSEWHERE))
def test_saved_model(folder, method, tmp_path):
    """TensorFlow alone runs the SavedModel, at two batch sizes."""
    import tensorflow as tf

    x = np.load(folder / "x.npy")
    again = keras.saving.load_model(folder / f"{method}.keras")
    again.export(tmp_path / "model", verbose=False)
    module = tf.saved_model.load(tmp_path / "model")
    wanted = np.load(folder / f"{method}.npy")
    for size in (2, 6):
        output = module.serve(tf.constant(x[:size])).numpy()
        np.testing.assert_allclose(output, wanted[:size], atol=1e-6)
