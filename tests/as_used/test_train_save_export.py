"""Train, save, load, and export a user's functional model with a block."""

import os

import keras
import numpy as np
import pytest
from custom_loops import train_by_hand

from keras_moe import MoEBlock
from keras_moe.export import export, load

BACKEND = keras.backend.backend()
D = 8
FORMAT = {"jax": "litert", "tensorflow": "tf_saved_model", "torch": "torch"}


def make_model():
    """Return a small regression model with a block on a residual path."""
    inputs = keras.Input((None, D))
    x = keras.layers.Dense(D)(inputs)
    x = x + MoEBlock(4, 12, capacity_factor=1.5, shared_expert_dim=6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def make_data(rng, samples=64):
    """Return tokens, and a target that depends on two of their features."""
    x = rng.normal(size=(samples, 5, D)).astype("float32")
    return x, np.tanh(x[..., :2].sum(axis=(1, 2)))[:, None]


def compiled_model():
    """Return the model, ready for `fit`."""
    model = make_model()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def numpy_of(tensor):
    """Return a NumPy array of a tensor that may have a gradient."""
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))


@pytest.fixture(scope="module")
def trained():
    """Return a trained model, its data, and the loss of each epoch."""
    keras.utils.set_random_seed(1)
    model = compiled_model()
    x, y = make_data(np.random.default_rng(1))
    history = model.fit(x, y, batch_size=32, epochs=8, verbose=0)
    return model, x, history.history["loss"]


def test_the_speed_switches_of_the_other_tests_are_off():
    assert not os.environ.get("XLA_FLAGS")
    assert "conftest" not in keras.Model.fit.__code__.co_filename
    if BACKEND == "tensorflow":
        import tensorflow as tf

        options = tf.config.optimizer.get_experimental_options()
        assert not options["disable_meta_optimizer"]


def test_training_lowers_the_loss(trained):
    _, _, losses = trained
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


def test_predictions_do_not_depend_on_how_the_model_is_called(trained):
    """`predict` and a call agree, in other batches and at another length."""
    model, x, _ = trained
    predicted = model.predict(x, verbose=0)
    parts = model.predict(x[:7], batch_size=3, verbose=0)
    np.testing.assert_allclose(parts, predicted[:7], atol=1e-5)
    shorter = model.predict(x[:3, :2], verbose=0)
    np.testing.assert_allclose(numpy_of(model(x[:3, :2])), shorter, atol=1e-5)


def test_a_saved_model_is_loaded_and_trained_again(trained, tmp_path):
    model, x, losses = trained
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        again.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    y = make_data(np.random.default_rng(1))[1]
    history = again.fit(x, y, batch_size=32, epochs=1, verbose=0)
    assert history.history["loss"][0] < losses[0]


def test_an_export_gives_the_models_outputs(trained, tmp_path, rng):
    """The export takes any batch size and any length."""
    model, _, _ = trained
    export(model, tmp_path / "artifact", FORMAT[BACKEND])
    x = rng.normal(size=(3, 7, D)).astype("float32")
    (outputs,) = load(tmp_path / "artifact")({model.inputs[0].name: x})
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), atol=1e-5)


def test_a_custom_training_loop_matches_fit(rng):
    """Two steps by hand, with auxiliary losses, equal two steps of `fit`."""
    x, y = make_data(rng)
    model, by_hand = compiled_model(), compiled_model()
    by_hand.set_weights(model.get_weights())
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    expected = [
        model.fit(*batch, batch_size=32, verbose=0).history["loss"][0]
        for batch in batches
    ]
    losses = train_by_hand(by_hand, batches, keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for one, other in zip(
        by_hand.trainable_weights, model.trainable_weights, strict=True
    ):
        np.testing.assert_allclose(
            numpy_of(one), numpy_of(other), atol=1e-5, err_msg=one.path
        )
