"""Test properties of every router, for any weights and inputs."""

import numpy as np
import pytest
from backend import to_numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from router_zoo import (
    NORMALIZED,
    ROUTERS,
    D,
    E,
    arrays,
    router_cases,
    router_inputs_of,
)

from keras_moe import routing

T = 11
some = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
every_router = pytest.mark.parametrize("name", router_cases())
seeds = st.integers(0, 10_000)
masks = st.lists(st.booleans(), min_size=T, max_size=T)
experts_off = st.sets(st.integers(0, E - 1), max_size=3)
scales = st.sampled_from([1e-3, 1.0, 30.0])


def built(name, rng, scale=1.0):
    """Return a router with random weights of the given scale."""
    router = ROUTERS[name]()
    router.build((None, D))
    for weight in router.trainable_weights:
        weight.assign(scale * rng.normal(size=weight.shape))
    return router


def tokens(rng):
    return rng.normal(size=(T, D)).astype("float32")


@every_router
@some
@given(seed=seeds, mask=masks, off=experts_off, scale=scales)
def test_every_assignment_is_sound(name, seed, mask, off, scale):
    """A token's experts are distinct, with finite weights of at least 0.

    The weights sum to one if they are normalized, and probabilities always do.
    Padding and disabled experts are in no pair, in training or in inference.
    """
    rng = np.random.default_rng(seed)
    router = built(name, rng, scale)
    router.disable_experts(list(off)[: E - router.least_experts])
    disabled, mask = router.disabled_experts, np.array(mask)
    ids = router_inputs_of(router, (T,), seed)
    x = tokens(rng)
    for training in (False, True):
        a = arrays(router(x, mask=mask, training=training, router_inputs=ids))
        computed = a.expert_index != E
        pairs = np.stack([a.token_index, a.expert_index])[:, computed]
        assert np.unique(pairs, axis=1).shape == pairs.shape
        assert np.isfinite(a.combine_weights).all()
        assert (a.combine_weights >= 0).all()
        assert (a.combine_weights[~computed] == 0).all()
        assert mask[a.token_index[computed]].all()
        assert not set(disabled) & set(a.expert_index.tolist())
        assert (a.router_probs >= 0).all()
        np.testing.assert_allclose(a.router_probs.sum(1), 1, atol=1e-5)
        assert np.isfinite(a.router_loss)
        if name in NORMALIZED:
            total = np.bincount(a.token_index, a.combine_weights, T)
            np.testing.assert_allclose(total, mask, atol=1e-5)


@pytest.mark.one_backend
@every_router
@some
@given(
    seed=seeds,
    mask=masks,
    capacity=st.integers(1, 5),
    priority=st.sampled_from(routing.PRIORITIES),
)
def test_no_expert_exceeds_its_capacity(name, seed, mask, capacity, priority):
    rng = np.random.default_rng(seed)
    router = built(name, rng)
    ids = router_inputs_of(router, (T,), seed)
    chosen = router(tokens(rng), mask=np.array(mask), router_inputs=ids)
    kept = arrays(routing.apply_capacity(chosen, capacity, priority))
    chosen = arrays(chosen)
    real = np.bincount(kept.expert_index, minlength=E)[:E]
    wanted = np.bincount(chosen.expert_index, minlength=E)[:E]
    np.testing.assert_array_equal(real, np.minimum(wanted, capacity))
    null = chosen.expert_index > E
    np.testing.assert_array_equal(kept.expert_index[null] > E, True)


@pytest.mark.one_backend
@every_router
@some
@given(seed=seeds, mask=masks)
def test_permuting_experts_permutes_their_names(name, seed, mask):
    """Permuted columns of the logits give the same choices, renamed."""
    rng = np.random.default_rng(seed)
    router, other = built(name, rng), ROUTERS[name]()
    if not hasattr(router, "kernel") or "groups" in name:
        pytest.skip("no columns, or columns with a place in a group")
    other.build((None, D))
    order = rng.permutation(E)  # the expert at each new place
    columns = np.concatenate([order, np.arange(E, router.num_columns)])
    for mine, theirs in zip(
        router.trainable_weights, other.trainable_weights, strict=True
    ):
        by_expert = mine.shape[-1] == router.num_columns
        value = mine.numpy()
        theirs.assign(value[..., columns] if by_expert else value)
    x, mask = tokens(rng), np.array(mask)
    given_to_both = {
        "mask": mask,
        "router_inputs": router_inputs_of(router, (T,)),
    }
    one, two = (arrays(r(x, **given_to_both)) for r in (router, other))
    names = np.concatenate([order, np.arange(E, router.num_columns + 1)])

    def weights(a, names):
        rows = zip(*a[:3], strict=True)
        return {(t, names[e]): w for t, e, w in rows if e != E}

    before = weights(one, np.arange(router.num_columns + 1))
    after = weights(two, names)
    assert before.keys() == after.keys()
    for pair, weight in before.items():
        assert after[pair] == pytest.approx(weight, abs=1e-5)
    np.testing.assert_allclose(
        to_numpy(two.router_probs), one.router_probs[:, order], atol=1e-5
    )
