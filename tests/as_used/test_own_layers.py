"""Test a block inside users' own layers, models, cells, and wrappers."""

import keras
import numpy as np
import pytest
from oracle import block_outputs, normalized
from user_layers import D, MixtureCell, Residual, Subclassed

from keras_moe import MoEBlock

BACKEND = keras.backend.backend()


def make_data(rng, samples=32, length=5):
    """Return tokens, and a target that depends on two of their features."""
    x = rng.normal(size=(samples, length, D)).astype("float32")
    return x, np.tanh(x[..., :2].sum(axis=(1, 2)))[:, None]


def fitted(model, x, y, epochs=6):
    """Compile and train a model, and return the loss of each epoch."""
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)
    return history.history["loss"]


def assert_learned(losses):
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def with_head(x):
    """Return one number per example of tokens `(B, S, D)`."""
    return keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x))


def test_an_own_layer_with_a_residual(rng, tmp_path):
    layer = Residual()
    inputs = keras.Input((None, D))
    outputs = layer(inputs)
    x, y = make_data(rng)
    found = keras.Model(inputs, outputs).predict(x, verbose=0)
    expected = x + block_outputs(layer.block, normalized(x))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model = keras.Model(inputs, with_head(outputs))
    assert_learned(fitted(model, x, y))
    model.save(tmp_path / "own.keras")
    again = keras.saving.load_model(tmp_path / "own.keras")
    shorter = x[:3, :2]
    np.testing.assert_array_equal(
        again.predict(shorter, verbose=0), model.predict(shorter, verbose=0)
    )


@pytest.mark.parametrize("capacity_factor", [None, 1.25])
def test_a_subclassed_model(rng, capacity_factor):
    """The model runs inside another model, alone, and at another length."""
    inner = Subclassed(capacity_factor)
    inputs = keras.Input((None, D))
    model = keras.Model(inputs, inner(inputs))
    x, y = make_data(rng)
    assert_learned(fitted(model, x, y))
    tokens = x[:3, :2]
    mixed = tokens + block_outputs(inner.block, tokens)
    kernel, bias = inner.head.get_weights()
    expected = mixed.mean(axis=1) @ kernel + bias
    for found in (model.predict(tokens, verbose=0), inner.predict(tokens)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_time_distributed(rng):
    block = MoEBlock(4, 12)
    inputs = keras.Input((3, 5, D))
    outputs = keras.layers.TimeDistributed(block)(inputs)
    x = rng.normal(size=(32, 3, 5, D)).astype("float32")
    found = keras.Model(inputs, outputs).predict(x, verbose=0)
    np.testing.assert_allclose(found, block_outputs(block, x), atol=1e-5)
    pooled = keras.layers.GlobalAveragePooling2D()(outputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    y = np.tanh(x[..., :2].sum(axis=(1, 2, 3)))[:, None]
    assert_learned(fitted(model, x, y))


@pytest.mark.filterwarnings("ignore:.*cannot leave the loop")
@pytest.mark.parametrize("unroll", [False, True])
def test_a_recurrent_cell(rng, unroll):
    cell = MixtureCell()
    inputs = keras.Input((5, D))
    rnn = keras.layers.RNN(cell, unroll=unroll)
    model = keras.Model(inputs, rnn(inputs))
    x, y = make_data(rng)
    state = np.zeros((len(x), D))
    for step in range(x.shape[1]):
        state = np.tanh(x[:, step] + block_outputs(cell.block, state))
    np.testing.assert_allclose(model.predict(x, verbose=0), state, atol=1e-5)
    head = keras.Model(inputs, keras.layers.Dense(1)(model(inputs)))
    assert_learned(fitted(head, x, y))
    assert np.isfinite(head.predict(x[:3], verbose=0)).all()


class Frames(keras.layers.Layer):
    """A layer that applies one block to each frame of a clip."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block = MoEBlock(4, 12)
        self.frames = keras.layers.TimeDistributed(self.block)

    def build(self, input_shape):
        self.frames.build(input_shape)

    def call(self, x, training=None):
        return x + self.frames(x, training=training)


@pytest.mark.filterwarnings("ignore:.*cannot leave the loop")
def test_frames_of_unknown_number(rng):
    layer = Frames()
    # On JAX, `TimeDistributed` fails for any layer if the number is unknown.
    inputs = keras.Input((3 if BACKEND == "jax" else None, 5, D))
    outputs = layer(inputs)
    x = rng.normal(size=(32, 3, 5, D)).astype("float32")
    found = keras.Model(inputs, outputs).predict(x, verbose=0)
    expected = x + block_outputs(layer.block, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pooled = keras.ops.mean(outputs, axis=(1, 2))
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    y = np.tanh(x[..., :2].sum(axis=(1, 2, 3)))[:, None]
    assert_learned(fitted(model, x, y))


def test_nested_mixtures(rng):
    inner = [MoEBlock(2, 12, name=f"inner_{i}") for i in range(2)]
    outer = MoEBlock(2, experts=inner, top_k=1)
    inputs = keras.Input((None, D))
    model = keras.Model(inputs, with_head(outer(inputs)))
    before = [w.numpy().copy() for w in outer.trainable_weights]
    x, y = make_data(rng)
    assert_learned(fitted(model, x, y))
    for old, weight in zip(before, outer.trainable_weights, strict=True):
        assert np.abs(old - weight.numpy()).max() > 0, weight.path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [Residual, Subclassed])
def test_the_export_by_keras(rng, tmp_path, make):
    """The export takes any batch size and any length."""
    inputs = keras.Input((None, D))
    model = keras.Model(inputs, make()(inputs))
    x = rng.normal(size=(3, 7, D)).astype("float32")
    path = str(tmp_path / "exported.pt2")
    model.export(path, verbose=False, **export_options())
    found = served(path, x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1e-5)


def export_options():
    """Return the options that keep batch size and length dynamic."""
    if BACKEND != "torch":
        return {"format": "tf_saved_model"}
    import torch

    free = torch.export.Dim.AUTO
    shapes = (({0: free, 1: free},),)
    return {"format": "torch", "dynamic_shapes": shapes}


def served(path, x):
    """Return the outputs of an export in its own runtime."""
    if BACKEND == "torch":
        import torch

        outputs = torch.export.load(path).module()(torch.tensor(x))
        return outputs.detach().numpy()
    import tensorflow as tf

    artifact = tf.saved_model.load(path)
    return artifact.serve(x).numpy()
