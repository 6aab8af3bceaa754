"""Make models whose blocks share a bank or a router."""

import warnings

import keras
import pytest
from backend import draw

from keras_moe import (
    Expert,
    HierarchicalMoE,
    MoEBlock,
    Router,
    TransformerEncoderBlock,
)

E, D, F = 4, 8, 6


def two_blocks():
    """Return two blocks, of which the second shares the first one's experts."""
    first = MoEBlock(E, F, name="first")
    return first, MoEBlock(E, share_experts_with=first, name="second")


def three_blocks():
    """Return three blocks that are given the same bank and router."""
    bank, router = Expert(F, E, use_bias=False), Router(E, use_bias=True)
    return [
        MoEBlock(E, experts=bank, router=router, name=f"block_{i}")
        for i in range(3)
    ]


def transformers():
    """Return two encoders that share a block, and two that share experts."""
    block = MoEBlock(E, F, name="shared_block")
    first, second = two_blocks()
    parts = (block, first, block, second)
    return [
        TransformerEncoderBlock(2, moe, name=f"transformer_{i}")
        for i, moe in enumerate(parts)
    ]


def lent_by_groups():
    """Return a block and two others that share the router that it made."""
    groups = HierarchicalMoE(2, E, F, top_k_groups=2, jitter=0.1, name="first")
    other = HierarchicalMoE(
        2, E, F, top_k_groups=2, jitter=0.1, router=groups.router, name="second"
    )
    return [groups, other, MoEBlock(E, F, router=groups.router, name="third")]


def chain(layers):
    inputs = keras.Input((5, D))
    x = inputs
    for layer in layers:
        x = x + layer(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x[:, 0]))


SHAPES = {  # a function, and the number of the shared bank's weights
    "two blocks": (two_blocks, 4),
    "three blocks": (three_blocks, 2),
    "transformers": (transformers, 4),
}


every_sharing = pytest.mark.parametrize("name", SHAPES)


def experts_of(model):
    """Return the banks of a model's blocks, in order."""
    layers = [layer for layer in model.layers if layer.name != "dense"]
    blocks = [getattr(layer, "moe", layer) for layer in layers]
    return [block.experts for block in blocks if isinstance(block, MoEBlock)]


def with_other_weights(model, rng):
    """Change every weight of a model."""
    for weight in model.trainable_variables:
        weight.assign_add(0.1 * draw(rng, *weight.shape))
    return model


def warned(make):
    """Return the result of a function, and its warnings about copies."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = make()
    texts = [str(w.message) for w in caught]
    return result, [text for text in texts if "copies now" in text]
