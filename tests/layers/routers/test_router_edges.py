"""Test every router with NaN, with no tokens, and with huge weights."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from model_zoo import compiled
from router_zoo import ROUTERS, D, E, arrays, router_inputs_of

from keras_moe import (
    AttentionRouter,
    GShardRouter,
    MoEBlock,
    Router,
)
from keras_moe.compress.merged_router import MergedRouter

MADE = {
    **ROUTERS,
    "Router with a scale": lambda: Router(E, expert_scale=True),
    "GShardRouter threshold": lambda: GShardRouter(E, "threshold"),
    "TopPRouter normalized": lambda: ROUTERS["TopPRouter"](
        normalize_weights=True
    ),
    "AttentionRouter causal": lambda: AttentionRouter(E, causal=True),
    "MergedRouter": lambda: MergedRouter(3, Router(E)),
}
every_router = pytest.mark.parametrize("name", MADE)
# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def block_of(router, **kwargs):
    return MoEBlock(router=router, intermediate_dim=12, **kwargs)


@pytest.mark.every_backend
@every_router
def test_a_nan_token_comes_out_as_nan(name, rng):
    """No other token changes if the router handles each token separately."""
    block = block_of(MADE[name]())
    x = draw(rng, 3, 5, D)
    ids = router_inputs_of(block.router, (3, 5))
    block.build(x.shape)
    call = compiled(block, router_inputs=ids)
    clean = to_numpy(call(x))
    x[1, 2, 3] = np.nan
    outputs = to_numpy(call(x))
    if name != "ExpertChoiceRouter":  # whose experts may not choose it
        assert np.isnan(outputs[1, 2]).all()
    others = np.ones((3, 5), bool)
    others[1, 2] = False
    if "Attention" in name:  # every token reads it, or every later one
        first = 2 if "causal" in name else 0
        others[1, first:] = False
        assert np.isnan(outputs[1, first:]).all()
    if name != "ExpertChoiceRouter":
        np.testing.assert_allclose(
            outputs[others], clean[others], rtol=1e-4, atol=1e-5
        )


@every_router
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_no_tokens(name, shape):
    """Empty batches and sequences run in training and in inference."""
    block = block_of(MADE[name]())
    block.build((None, None, D))
    ids = router_inputs_of(block.router, shape)
    for training in (False, True):
        outputs = block(
            np.zeros((*shape, D), "float32"),
            mask=np.ones(shape, bool),
            router_inputs=ids,
            training=training,
        )
        assert tuple(outputs.shape) == (*shape, D)
        assert np.isfinite([to_numpy(loss) for loss in block.losses]).all()
    for weight in block.weights:
        if "float" in keras.backend.standardize_dtype(weight.dtype):
            assert np.isfinite(to_numpy(weight)).all(), weight.path


@every_router
@pytest.mark.parametrize("scale", [1e6, 1e15], ids=str)
def test_huge_weights(name, scale, rng):
    """Choices, weights, and probabilities stay finite, also for padding."""
    router = MADE[name]()
    router.build((None, None, D))
    for weight in router.trainable_variables:
        weight.assign(scale * draw(rng, *weight.shape))
    x = draw(rng, 3, 5, D)
    mask = np.arange(5) < np.array([[5], [3], [0]])
    ids = router_inputs_of(router, (3, 5))
    for given in (None, mask):
        found = arrays(router(x, mask=given, router_inputs=ids))
        for field in found:
            assert np.isfinite(field).all()
        if given is not None and name != "ExpertChoiceRouter":
            pairs = found.expert_index.reshape(15, -1)
            assert (pairs[~mask.ravel()] == router.num_experts).all()


@pytest.mark.parametrize("name", [n for n in MADE if n != "MergedRouter"])
def test_a_replay_reproduces_the_call(name, rng):
    """A replay also leaves out pairs that capacity or a threshold dropped.

    The recorded `Assignment` does not name the experts of these pairs.
    """
    block = block_of(MADE[name](), eval_capacity_factor=0.7)
    x = draw(rng, 4, 5, D)
    ids = router_inputs_of(block.router, (4, 5))
    outputs, recorded = block(x, router_inputs=ids, return_assignment=True)
    dropped = arrays(recorded).expert_index == E
    assert dropped.any() or name == "ExpertChoiceRouter"
    again = block(x, router_inputs=ids, replay=recorded)
    np.testing.assert_allclose(
        to_numpy(again), to_numpy(outputs), rtol=1e-4, atol=1e-5
    )


def test_a_random_second_expert_is_replayed_without_a_draw(rng):
    """In training, a replay keeps exactly what the recorded draw kept."""
    block = block_of(GShardRouter(E, "random", threshold=1.0))
    x = draw(rng, 40, D)
    outputs, recorded = block(x, training=True, return_assignment=True)
    replayed, again = block(
        x, training=True, replay=recorded, return_assignment=True
    )
    dropped = arrays(recorded).expert_index == E
    assert 0 < dropped.sum() < 40
    np.testing.assert_array_equal(
        arrays(again).expert_index, arrays(recorded).expert_index
    )
    np.testing.assert_allclose(
        to_numpy(replayed), to_numpy(outputs), rtol=1e-4, atol=1e-5
    )
