"""Test that `merge_experts` merges similar experts and changes nothing else."""

import keras
import numpy as np
import pytest
import router_zoo
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

import keras_moe
from keras_moe import ClippedSwiGLU, MoEBlock, Router
from keras_moe.compress import MergedRouter, averaging, merge_experts

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("name", router_zoo.ROUTERS)
def test_equal_experts_merge_exactly_with_every_router(name, rng):
    """Expert 3 is a copy of expert 1, with permuted hidden units."""
    router = router_zoo.ROUTERS[name]()
    model = router_zoo.model_of(router)
    block = model.get_layer("block")
    randomize(block, rng)
    copy_expert(block.experts, 1, 3, rng.permutation(12))
    x = [draw(rng, 6, 5, router_zoo.D)]
    ids = router_zoo.router_inputs_of(router, (6, 5))
    x += [] if ids is None else [ids]
    merged = merge_experts(model, router_zoo.E - 1, data=x)
    np.testing.assert_allclose(
        outputs_of(merged, x), outputs_of(model, x), rtol=1e-5, atol=1e-6
    )
    router = merged.get_layer("block").router
    assert to_numpy(router.merged_into).tolist() == [0, 1, 2, 1, 3, 4]


@pytest.mark.parametrize("name", MODELS)
def test_models_that_build_their_blocks(name, rng, tmp_path):
    model = MODELS[name](
        num_layers=2, moe_every=2, activation=ClippedSwiGLU(), gated=True
    )
    for block in model.moe_blocks:
        copy_expert(block.experts, 0, 2, [5, 4, 3, 2, 1, 0])
    x, _ = batch_of(name, rng, samples=4)
    merged = merge_experts(model, 2, data=x)
    assert type(merged) is type(model)
    expected = outputs_of(model, x)
    np.testing.assert_allclose(
        outputs_of(merged, x), expected, rtol=1e-5, atol=1e-6
    )
    merged.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs_of(again, x), outputs_of(merged, x))


def test_the_mean_is_weighted_by_load(rng):
    """Loads of 3 and 1 give shares of 3/4 and 1/4."""
    experts = [{"up_kernel": np.full((2, 1), v)} for v in (4.0, 8.0)]
    for expert in experts:
        expert["down_kernel"] = np.ones((1, 2), "float32")
    mean = averaging.mean_expert(experts, np.array([3, 1]))
    np.testing.assert_allclose(mean["up_kernel"], np.full((2, 1), 5.0))
    unused = averaging.mean_expert(experts, np.zeros(2))
    np.testing.assert_allclose(unused["up_kernel"], np.full((2, 1), 6.0))


def test_alignment_undoes_a_permutation(rng):
    expert = {
        "up_kernel": draw(rng, 4, 5),
        "gate_kernel": draw(rng, 4, 5),
        "up_bias": draw(rng, 5),
        "down_kernel": draw(rng, 5, 3),
        "down_bias": draw(rng, 3),
    }
    shuffled = averaging.take_units(expert, [2, 0, 4, 1, 3])
    assert (shuffled["up_bias"] == expert["up_bias"][[2, 0, 4, 1, 3]]).all()
    for name, weight in averaging.aligned(shuffled, expert).items():
        np.testing.assert_array_equal(weight, expert[name])


def test_the_nearest_are_joined_first():
    """The points 0, 1, 5, 5.5, and 20 are on a line.

    The mean distance between {0, 1} and {5, 5.5} is 4.75, and both are farther
    from 20.
    """
    place = np.array([[0.0], [5.0], [20.0], [1.0], [5.5]])
    apart = averaging.distances(place)
    assert apart[0, 4] == 5.5
    assert averaging.cluster(apart, 4) == [[0], [1, 4], [2], [3]]
    assert averaging.cluster(apart, 3) == [[0, 3], [1, 4], [2]]
    assert averaging.cluster(apart, 2) == [[0, 1, 3, 4], [2]]


def test_by_router_logits(rng):
    """Columns 0 and 2 have the same direction and different lengths."""
    model = block_model()
    block = model.layers[-1]
    kernel = to_numpy(block.router.kernel).copy()
    kernel[:, 2] = 3 * kernel[:, 0]
    block.router.kernel.assign(kernel)
    x = draw(rng, 6, 3, WIDTH)
    merged = merge_experts(model, 3, data=x, by="router_logits")
    router = merged.layers[-1].router
    assert to_numpy(router.merged_into).tolist() == [0, 1, 0, 2]


def merged_router(rng):
    inner = Router(4, 2)
    router = MergedRouter(2, inner)
    router.build((None, WIDTH))
    router.merged_into.assign([0, 1, 1, 0])
    return router, inner


@pytest.mark.every_backend
def test_a_merged_experts_probability_is_the_sum_of_its_columns(rng):
    router, inner = merged_router(rng)
    x = draw(rng, 5, WIDTH)
    new, old = (router_zoo.arrays(r(x)) for r in (router, inner))
    probs = old.router_probs
    expected = np.stack(
        [probs[:, [0, 3]].sum(-1), probs[:, [1, 2]].sum(-1)], -1
    )
    np.testing.assert_allclose(new.router_probs, expected, rtol=1e-5)
    sums = np.exp(old.router_logits)
    expected = np.stack([sums[:, [0, 3]].sum(-1), sums[:, [1, 2]].sum(-1)], -1)
    np.testing.assert_allclose(
        new.router_logits, np.log(expected), rtol=1e-4, atol=1e-5
    )
    into = np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(new.expert_index, into[old.expert_index])
    np.testing.assert_array_equal(new.combine_weights, old.combine_weights)


@pytest.mark.every_backend
def test_padding_is_not_routed_and_experts_can_be_disabled(rng):
    router, inner = merged_router(rng)
    x = draw(rng, 3, WIDTH)
    new = router_zoo.arrays(router(x, mask=np.array([True, False, True])))
    assert new.expert_index[2:4].tolist() == [2, 2]  # 2 means "not computed"
    router.disable_experts([1])
    assert inner.disabled_experts == [1, 2]
    assert router.disabled_experts == [1]
    new = router_zoo.arrays(router(x))
    assert set(new.expert_index.tolist()) == {0}
    router.enable_experts()
    assert inner.disabled_experts == router.disabled_experts == []
    with pytest.raises(ValueError, match="`replay` must be None.*Received"):
        router(x, replay=inner(x))


def test_a_hierarchy_becomes_a_block_with_its_router(rng):
    model = block_model(keras_moe.HierarchicalMoE(2, 4, 6, name="stages"))
    copy_expert(model.layers[-1].experts, 0, 1)
    x = draw(rng, 4, 3, WIDTH)
    merged = merge_experts(model, 3, data=x)
    assert type(merged.layers[-1]) is MoEBlock
    np.testing.assert_allclose(
        outputs_of(merged, x), outputs_of(model, x), rtol=1e-5, atol=1e-6
    )


def test_a_merged_model_can_be_trained(rng):
    model = block_model()
    x = draw(rng, 16, 3, WIDTH)
    merged = merge_experts(model, 0.5, data=x)
    merged.compile(keras.optimizers.Adam(0.02), "mse")
    losses = merged.fit(x, x, batch_size=16, epochs=8, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    block = merged.layers[-1]
    assert to_numpy(block.statistics.num_batches).tolist() == [8]
