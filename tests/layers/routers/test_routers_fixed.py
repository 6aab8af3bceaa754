"""Check routers that are not learned, by hand or by independent code."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops
from router_zoo import arrays

from keras_moe import HashRouter, MoEBlock, RuleRouter, routing


def mixed(x):
    """Compute the hash of the docstring in Python's integers."""

    def signed(x):
        return (x + (1 << 31)) % (1 << 32) - (1 << 31)

    x %= 1 << 32
    for multiplier in (0x7FEB352D, 0x046CA68B):
        x ^= x >> 16
        x = x * multiplier % (1 << 32)
        x ^= x >> 15
    return signed(x ^ (x >> 16))


def test_hash_is_the_documented_one(rng):
    ids = np.array([0, 1, 7, 30521, 2**31 - 1, -5], "int32")
    got = to_numpy(routing.hash_scores(ids, 5, seed=3))
    for row, i in zip(got, ids, strict=True):
        for e, score in enumerate(row):
            bits = mixed(mixed(int(i)) ^ mixed(e + 1 + 3 * 5)) % (1 << 24)
            assert score == pytest.approx(bits / (1 << 24), abs=1e-7)


@pytest.mark.parametrize("seed", [2**20 - 1, 2**20, 2**32, 2**63 - 1])
def test_hash_of_any_seed(seed):
    """The 32-bit digits of `e + 1 + seed * E` are mixed one after another."""
    ids = np.array([0, 3, 99], "int32")
    got = to_numpy(routing.hash_scores(ids, 4096, seed))[:, [0, 5, 4095]]
    for row, i in zip(got, ids, strict=True):
        for e, score in zip((0, 5, 4095), row, strict=True):
            number = e + 1 + seed * 4096
            digits = -(-(4096 + seed * 4096).bit_length() // 32)
            salt = 0
            for place in range(digits):
                salt = mixed(salt ^ (number >> 32 * place & 0xFFFFFFFF))
            bits = mixed(mixed(int(i)) ^ salt) % (1 << 24)
            assert score == pytest.approx(bits / (1 << 24), abs=1e-7)


def test_each_seed_has_its_own_functions():
    """Seeds (and seed * E) with equal low bits have other functions, too."""
    ids = np.arange(30, dtype="int32")
    for num_experts, seeds in (
        (8, (0, 1, 2**20, 2**32, 2**40, 2**63 - 1)),
        (8192, (0, 2**19, 2**20)),
    ):
        found = [
            to_numpy(routing.hash_scores(ids, num_experts, seed)).tobytes()
            for seed in seeds
        ]
        assert len(set(found)) == len(seeds)


def test_hash_spreads_ids_evenly():
    """Each of 8 experts gets 20,000 / 8 ids, within 5 standard deviations."""
    scores = to_numpy(routing.hash_scores(np.arange(20_000), 8))
    counts = np.bincount(scores.argmax(1), minlength=8)
    assert np.abs(counts - 2500).max() < 5 * (20_000 * 7 / 64) ** 0.5
    pairs = np.argsort(-scores, axis=1)[:, :2] @ [8, 1]
    assert len(np.unique(pairs)) == 8 * 7  # the second hash differs


def test_an_id_always_has_the_same_experts(rng):
    router = HashRouter(6, 2)
    ids = rng.integers(0, 50, (4, 9))
    a = arrays(router(draw(rng, 4, 9, 3), router_inputs=ids))
    by_id = {}
    for i, pair in zip(ids.ravel(), a.expert_index.reshape(-1, 2), strict=True):
        assert by_id.setdefault(i, pair.tolist()) == pair.tolist()
    np.testing.assert_array_equal(a.combine_weights, np.full(72, 0.5))
    other = HashRouter(6, 2, seed=1)(draw(rng, 4, 9, 3), router_inputs=ids)
    assert (to_numpy(other.expert_index) != a.expert_index).any()
    assert router.trainable_weights == []


def test_modulo_and_round_robin_by_hand(rng):
    x = draw(rng, 5, 3)
    ids = np.array([0, 7, 8, 2, -1])
    a = HashRouter(4, 2, "modulo")(x, router_inputs=ids)
    np.testing.assert_array_equal(
        to_numpy(a.expert_index), [0, 1, 3, 0, 0, 1, 2, 3, 3, 0]
    )
    a = HashRouter(4, method="round_robin")(x)
    np.testing.assert_array_equal(to_numpy(a.expert_index), [0, 1, 2, 3, 0])


def test_a_rule_of_one_id_per_sequence(rng):
    """Two sequences of three tokens have tasks 1 and 0."""
    router = RuleRouter(2)
    a = router(draw(rng, 2, 3, 4), router_inputs=np.array([1, 0]))
    np.testing.assert_array_equal(to_numpy(a.expert_index), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(to_numpy(a.combine_weights), np.ones(6))


@keras.saving.register_keras_serializable(package="tests")
def by_sign(inputs, router_inputs):
    """Return expert 2 for a positive first feature, and -1 (no rule) if not."""
    return ops.where(inputs[..., 0] > 0, 2, -1)


def test_a_rule_of_the_users_and_a_default():
    router = RuleRouter(3, rule=by_sign, default_expert=1)
    router = RuleRouter.from_config(router.get_config())
    a = router(np.array([[1.0, 0], [-1, 0], [2, 0]]))
    np.testing.assert_array_equal(to_numpy(a.expert_index), [2, 1, 2])


@pytest.mark.parametrize("ids", [[0, 3], [0, -1]])
def test_a_rule_out_of_range_is_an_error(ids):
    with pytest.raises(ValueError, match="must be in 0 ... 2"):
        RuleRouter(3)(np.ones((2, 4)), router_inputs=np.array(ids))


def test_padding_may_have_any_id():
    router = RuleRouter(3)
    mask, ids = np.array([True, False]), np.array([1, 99])
    a = router(np.ones((2, 4)), mask=mask, router_inputs=ids)
    np.testing.assert_array_equal(to_numpy(a.expert_index), [1, 3])
    assert np.isfinite(to_numpy(a.combine_weights)).all()


def test_a_rule_out_of_range_never_passes_silently():
    """A model raises an error, or returns NaN if its program cannot raise."""
    inputs = [keras.Input((4,)), keras.Input((), dtype="int32")]
    block = MoEBlock(3, 5, router=RuleRouter(3))
    model = keras.Model(inputs, block(inputs[0], router_inputs=inputs[1]))
    x = np.ones((2, 4), "float32")
    good = model.predict([x, np.array([0, 2])], verbose=0)
    assert np.isfinite(good).all()
    bad = [x, np.array([0, 3])]
    if BACKEND == "jax":
        y = model.predict(bad, verbose=0)
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).all()
    else:
        with pytest.raises(Exception, match="must be in 0 ... 2"):
            model.predict(bad, verbose=0)
