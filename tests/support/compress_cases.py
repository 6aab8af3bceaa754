"""Provide the tests of `keras_moe.compress` with models and assertions."""

import keras
import numpy as np
from backend import BACKEND, draw, to_numpy
from model_zoo import outputs_of
from zoo import WIDTH

from keras_moe import MoEBlock

__all__ = ["BACKEND", "WIDTH", "draw", "outputs_of", "to_numpy"]


def block_model(block=None, length=3, name="block"):
    """Return a model of one block, from `(B, length, WIDTH)` to the same."""
    inputs = keras.Input((length, WIDTH))
    block = block or MoEBlock(4, 6, name=name)
    return keras.Model(inputs, block(inputs))


def randomize(layer, rng):
    """Set every bias of a layer's experts and router to nonzero values."""
    for weight in layer.trainable_weights:
        if "bias" in weight.name:
            weight.assign(0.1 * draw(rng, *weight.shape))


def copy_expert(bank, source, target, order=None):
    """Copy one expert to another, with its hidden units in the given order."""
    for weight in bank.weights:
        value = to_numpy(weight).copy()
        one = value[source]
        if order is not None and weight.name != "down_bias":
            axis = 0 if weight.name == "down_kernel" else -1
            one = np.take(one, order, axis)
        value[target] = one
        weight.assign(value)


def kept_experts(old, new):
    """Return the old bank's experts that the new bank has, in its order."""
    before, after = to_numpy(old.up_kernel), to_numpy(new.up_kernel)
    return [
        next(e for e in range(len(before)) if (before[e] == one).all())
        for one in after
    ]


def assert_as_if_switched_off(old, new, x):
    """Assert that pruning gives the same as disabling the pruned experts."""
    for one, other in blocks_of_both(old, new):
        kept = kept_experts(one.experts, other.experts)
        assert kept == sorted(set(kept))
        gone = set(range(one.num_experts)) - set(kept)
        assert gone
        one.disable_experts(gone)
    np.testing.assert_allclose(
        outputs_of(new, x), outputs_of(old, x), rtol=1e-5, atol=1e-6
    )


def blocks_of_both(old, new):
    from keras_moe.callbacks import find_blocks

    return zip(find_blocks(old), find_blocks(new), strict=True)
