"""Test `to_dense` and `prune_weights` in cases in which they are exact."""

import keras
import numpy as np
import pytest
from compress_cases import (
    WIDTH,
    block_model,
    copy_expert,
    draw,
    outputs_of,
    randomize,
    to_numpy,
)
from model_zoo import MODELS, batch_of

from keras_moe import (
    ClippedSwiGLU,
    Expert,
    MoEBlock,
    Router,
    TransformerEncoderBlock,
)
from keras_moe.compress import prune_weights, to_dense
from keras_moe.compress.magnitude import largest_units, units_left

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def make_equal(block):
    for e in range(1, block.num_experts):
        copy_expert(block.experts, 0, e)


@pytest.mark.parametrize(
    "by",
    ["average", pytest.param("load", marks=pytest.mark.every_backend)],
)
def test_equal_experts_and_a_shared_one_are_one_network(by, rng):
    """The dense network, in a transformer block, has F + S = 6 + 5 units."""
    inputs = keras.Input((3, WIDTH))
    moe = MoEBlock(
        4,
        6,
        shared_expert_dim=5,
        activation=ClippedSwiGLU(1.5),
        gated=True,
    )
    model = keras.Model(inputs, TransformerEncoderBlock(2, moe)(inputs))
    randomize(moe, rng)
    make_equal(moe)
    x = draw(rng, 4, 3, WIDTH)
    dense = to_dense(model, by, data=x if by == "load" else None)
    network = dense.layers[-1].moe
    assert type(network) is Expert and network.intermediate_dim == 11
    assert network.num_experts == 1 and network.name == moe.name
    np.testing.assert_allclose(
        outputs_of(dense, x), outputs_of(model, x), rtol=1e-5, atol=1e-5
    )


def test_the_mean_probability_scales_a_top_1_block(rng):
    """A router of zeros gives each expert 1/4, so an output is E(x) / 4."""
    model = block_model(MoEBlock(4, 6, top_k=1, name="block"))
    block = model.get_layer("block")
    randomize(block, rng)
    make_equal(block)
    block.router.kernel.assign(np.zeros((WIDTH, 4)))
    x = draw(rng, 4, 3, WIDTH)
    expected = outputs_of(model, x)
    scaled = outputs_of(to_dense(model, data=x), x)
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-6)
    plain = outputs_of(to_dense(model), x)
    np.testing.assert_allclose(plain, 4 * expected, rtol=1e-5, atol=1e-6)


def test_a_routers_scaling_factor_is_used_without_data(rng):
    router = Router(4, 2, routed_scaling_factor=2.5)
    model = block_model(MoEBlock(4, 6, router=router, name="block"))
    make_equal(model.get_layer("block"))
    x = draw(rng, 4, 3, WIDTH)
    np.testing.assert_allclose(
        outputs_of(to_dense(model), x),
        outputs_of(model, x),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_scale_of_each_expert_is_used_without_data(rng):
    """The experts differ, but are equal once they are scaled."""
    router = Router(4, 2, expert_scale=True)
    model = block_model(MoEBlock(4, 6, router=router, name="block"))
    block = model.get_layer("block")
    make_equal(block)
    scale = np.array([2, 1, 0.5, 2], "float32")
    router.expert_scale_weight.assign(scale)
    kernel, bias = block.experts.down_kernel, block.experts.down_bias
    kernel.assign(to_numpy(kernel) / scale[:, None, None])
    bias.assign(to_numpy(bias) / scale[:, None])
    x = draw(rng, 4, 3, WIDTH)
    np.testing.assert_allclose(
        outputs_of(to_dense(model), x),
        outputs_of(model, x),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_average_and_the_most_loaded(rng):
    model = block_model()
    block = model.layers[-1]
    block.statistics.expert_load.assign([0.1, 0.2, 0.6, 0.1])
    block.statistics.num_batches.assign([1.0])
    kernels = to_numpy(block.experts.up_kernel)
    for by, expected in (("average", kernels.mean(0)), ("load", kernels[2])):
        dense = to_dense(model, by).layers[-1]
        np.testing.assert_allclose(
            to_numpy(dense.up_kernel)[0], expected, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(
    "name, moe_every",
    [(n, m) for n in MODELS for m in (1, 2)],
)
def test_models_become_their_dense_twin(name, moe_every, rng):
    model = MODELS[name](num_layers=2, moe_every=moe_every, shared_expert_dim=4)
    for block in model.moe_blocks:
        make_equal(block)
    x, _ = batch_of(name, rng, samples=4)
    x = keras.tree.map_structure(  # without padding, for which a block gives 0
        lambda a: np.maximum(a, 1) if a.dtype == "int32" else a, x
    )
    dense = to_dense(model)
    assert type(dense) is type(model) and dense.moe_blocks == []
    assert dense.get_config()["num_experts"] is None
    np.testing.assert_allclose(
        outputs_of(dense, x), outputs_of(model, x), rtol=1e-4, atol=1e-5
    )


def test_pruning_dead_hidden_units_changes_nothing(rng):
    """Half of the units of each expert have only zeros as inputs or outputs.

    The experts have different dead units.
    """
    block = MoEBlock(
        3, 6, shared_expert_dim=4, gated=True, activation=ClippedSwiGLU()
    )
    model = block_model(block)
    randomize(block, rng)
    for bank, dead in (
        (block.experts, [[0, 2, 4], [1, 3, 5], [3, 4, 5]]),
        (block.shared_expert, [[1, 2]]),
    ):
        down = to_numpy(bank.down_kernel).copy()
        for e, units in enumerate(dead):
            down[e, units] = 0
        bank.down_kernel.assign(down)
    up = {
        name: to_numpy(getattr(block.experts, name)).copy()
        for name in ("up_kernel", "up_bias", "gate_kernel", "gate_bias")
    }
    down = to_numpy(block.experts.down_kernel).copy()
    down[0, 4] = 1.0  # unit 4 of the first expert has no input instead
    block.experts.down_kernel.assign(down)
    for name, weight in up.items():
        weight[0, ..., 4] = 0
        getattr(block.experts, name).assign(weight)
    x = draw(rng, 4, 3, WIDTH)
    pruned = prune_weights(model, 0.5, "structured")
    smaller = pruned.layers[-1]
    assert smaller.experts.up_kernel.shape == (3, WIDTH, 3)
    assert smaller.shared_expert.down_kernel.shape == (1, 2, WIDTH)
    np.testing.assert_allclose(
        outputs_of(pruned, x), outputs_of(model, x), rtol=1e-5, atol=1e-6
    )


def test_which_units_are_small():
    """The products of squared norms are (1+4)(1), (4+1)(4), and (1+0)(9)."""
    expert = {
        "up_kernel": np.array([[1.0, 2.0, 1.0]]),
        "up_bias": np.array([2.0, 1.0, 0.0]),
        "down_kernel": np.array([[1.0], [2.0], [3.0]]),
    }
    assert largest_units(expert, 1).tolist() == [1]
    assert largest_units(expert, 2).tolist() == [1, 2]
    left = [units_left(6, s) for s in (0, 0.5, 0.99, 0.25)]
    assert left == [6, 3, 1, 4]


@pytest.mark.parametrize("name", ["MoESeq2Seq", "MoEVisionClassifier"])
def test_structured_pruning_of_models_with_arguments(name, rng):
    """Dense blocks have K * F + S units, so 2 * 6 + 4 become 2 * 3 + 2."""
    model = MODELS[name](num_layers=2, moe_every=2, shared_expert_dim=4)
    x, _ = batch_of(name, rng, samples=2)
    pruned = prune_weights(model, 0.5, "structured")
    widths = {
        x.intermediate_dim
        for x in pruned._flatten_layers()
        if isinstance(x, Expert)
    }
    assert type(pruned) is type(model) and widths == {3, 2, 8}
    assert np.isfinite(outputs_of(pruned, x)).all()


def test_small_weights_become_zero(rng):
    """A quarter of each kernel of each expert becomes zero; biases stay."""
    model = block_model(MoEBlock(2, 4, name="block"))
    bank = model.get_layer("block").experts
    randomize(bank, rng)
    new = prune_weights(model, 0.25).get_layer("block").experts
    for name in ("up_kernel", "down_kernel"):
        for old, got in zip(
            to_numpy(getattr(bank, name)),
            to_numpy(getattr(new, name)),
            strict=True,
        ):
            limit = np.sort(np.abs(old).ravel())[8]  # a kernel has 8 * 4
            expected = np.where(np.abs(old) < limit, 0, old)
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(to_numpy(new.up_bias), to_numpy(bank.up_bias))
