"""Test the gate of the shared expert; transformers gives values elsewhere."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from compress_cases import block_model, outputs_of
from mixture_oracle import expert, randomize

from keras_moe import HierarchicalMoE, MoEBlock
from keras_moe.compress import (
    merge_experts,
    prune_experts,
    prune_weights,
    to_dense,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

WIDTH = 8


def gated(**options):
    options = {"shared_expert_dim": 5, "shared_expert_gate": True, **options}
    return MoEBlock(4, 6, **options)


def shared_by_hand(block, x):
    """Return `sigmoid(x w) f(x)` in NumPy."""
    gate = 1 / (1 + np.exp(-x @ to_numpy(block.shared_expert_gate.kernel)))
    return gate * expert(block.shared_expert, 0, x)


@pytest.mark.parametrize("level", ["token", "example"])
def test_only_the_shared_output_is_multiplied(rng, level):
    """Without its last matrix and bias, the shared expert adds zero."""
    x = draw(rng, 3, 5, WIDTH)
    x[0, 3:] = np.nan
    mask = ~np.isnan(x).any(-1)
    block = gated(level=level)
    block.build(x.shape)
    randomize(block, rng)
    outputs = to_numpy(block(x, mask=mask))
    shared = shared_by_hand(block, x[mask])
    for weight in (
        block.shared_expert.down_kernel,
        block.shared_expert.down_bias,
    ):
        weight.assign(np.zeros(weight.shape))
    routed = to_numpy(block(x, mask=mask))
    np.testing.assert_allclose(
        outputs[mask], routed[mask] + shared, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(outputs[~mask], 0)


@pytest.mark.filterwarnings("ignore:Layer InputLayer")
def test_the_gate_survives_changes_of_the_model(rng):
    model = block_model(gated(top_k=1))
    x = draw(rng, 6, 3, WIDTH)
    gate = to_numpy(model.layers[-1].shared_expert_gate.kernel)
    for smaller in (
        prune_experts(model, 2, data=x),
        merge_experts(model, 2, x),
        prune_weights(model, 0.2),
    ):
        kernel = smaller.layers[-1].shared_expert_gate.kernel
        np.testing.assert_array_equal(to_numpy(kernel), gate)
    with pytest.raises(ValueError, match="`model` must .*Received.*gate=True"):
        to_dense(model)
    before = outputs_of(model, x)
    model.quantize("int8")
    kernel = model.layers[-1].shared_expert_gate.kernel
    assert keras.backend.standardize_dtype(kernel.dtype) == "float32"
    np.testing.assert_allclose(outputs_of(model, x), before, atol=0.1)


def test_the_gate_of_a_frozen_block_or_of_a_hierarchy():
    block = gated(kernel_initializer="ones")
    assert MoEBlock.from_config(block.get_config()).shared_expert_gate
    block.trainable = False
    block.build((None, WIDTH))
    assert not block.trainable_weights
    assert to_numpy(block.shared_expert_gate.kernel).tolist() == [[1]] * WIDTH
    layer = HierarchicalMoE(
        2, 4, 6, shared_expert_dim=5, shared_expert_gate=True
    )
    again = HierarchicalMoE.from_config(layer.get_config())
    assert again.shared_expert_gate is not None


def test_bad_arguments():
    for value in (True, "False", 1):
        with pytest.raises(
            ValueError, match="`shared_expert_gate` must .*Received: "
        ):
            gated(shared_expert_dim=None, shared_expert_gate=value)
