"""A block raises, when it is built, if experts change the rows' shape."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

from keras_moe import (
    Expert,
    MixtureOfModels,
    MoEBlock,
    SoftMoE,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

D = 8


@keras.saving.register_keras_serializable(package="tests")
class Halved(keras.layers.Layer):
    """A layer whose output shape Keras computes by tracing `call`."""

    def call(self, x):
        return x[..., : x.shape[-1] // 2]


CHANGING = {  # the experts, the level, and the inputs' shape without the batch
    "narrower": (lambda: keras.layers.Dense(5), "token", (D,)),
    "of another rank": (lambda: keras.layers.Reshape((2, 4)), "token", (D,)),
    "a layer of the user's": (Halved, "token", (3, D)),
    "a model": (
        lambda: keras.Sequential(
            [keras.layers.Dense(D), keras.layers.Dense(1)]
        ),
        "token",
        (D,),
    ),
    "valid padding": (lambda: keras.layers.Conv1D(D, 3), "example", (6, D)),
    "strides": (
        lambda: keras.layers.Conv2D(D, 3, strides=2, padding="same"),
        "example",
        (6, 6, D),
    ),
    "the last state": (lambda: keras.layers.LSTM(D), "example", (6, D)),
    "of unknown length": (lambda: keras.layers.LSTM(D), "example", (None, D)),
}


@pytest.mark.parametrize("name", CHANGING)
def test_experts_that_change_the_shape(name):
    make, level, shape = CHANGING[name]
    block = MoEBlock(experts=[make(), make()], level=level, top_k=1)
    with pytest.raises(ValueError, match="`experts` of a block must give.*Rec"):
        block(keras.Input(shape))


@pytest.mark.every_backend
def test_a_length_that_only_the_call_has():
    """If the length is unknown, the first call on numbers raises."""
    experts = [keras.layers.Conv1D(D, 3) for _ in range(2)]
    block = MoEBlock(experts=experts, level="example", top_k=1)
    block.build((None, None, D))
    with pytest.raises(ValueError, match="`experts` of a block must give.*Rec"):
        block(np.zeros((2, 6, D), "float32"))


def test_experts_that_keep_the_shape(rng):
    """A model and a layer run, for a known and for an unknown length."""
    for length in (6, None):
        experts = [
            keras.Sequential([keras.layers.Conv1D(D, 3, padding="same")]),
            keras.layers.LSTM(D, return_sequences=True),
        ]
        block = MoEBlock(experts=experts, level="example", top_k=1)
        inputs = keras.Input((length, D))
        model = keras.Model(inputs, block(inputs))
        x = draw(rng, 3, 6, D)
        assert model.output_shape == (None, length, D)
        assert model.predict(x, verbose=0).shape == x.shape


FEED_FORWARD = {
    "Dense": lambda: keras.layers.Dense(5),
    "one unit, which would broadcast": lambda: keras.layers.Dense(1),
    "Expert": lambda: Expert(12, output_dim=5),
    "SoftMoE": lambda: SoftMoE(2, 12, output_dim=5),
    "a layer of the user's": Halved,
}


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_a_feed_forward_part_that_changes_the_shape(name):
    block = TransformerDecoderBlock
    if name == "SoftMoE":  # no decoder accepts it
        block = TransformerEncoderBlock
    with pytest.raises(ValueError, match="`moe` must give outputs.*Received"):
        block(2, FEED_FORWARD[name]())(keras.Input((4, D)))


def test_models_of_different_outputs():
    models = [keras.layers.Dense(4), keras.layers.Dense(5)]
    for top_k in (None, 1):
        mixture = MixtureOfModels(models, top_k=top_k)
        with pytest.raises(ValueError, match="one structure and shape.*Rec"):
            mixture(np.zeros((3, D), "float32"))


def test_models_may_change_the_shape(rng):
    mixture = MixtureOfModels([keras.layers.Dense(4)] * 1, top_k=1)
    x = draw(rng, 3, D)
    assert to_numpy(mixture(x)).shape == (3, 4)
