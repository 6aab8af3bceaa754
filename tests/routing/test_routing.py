"""Compare routing decisions with values derived by hand.

Logits are written as logarithms, so that their softmax is the numbers inside.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from backend import draw, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_moe import routing

pytestmark = pytest.mark.fast

LOGITS = np.log(
    np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]], dtype="float32")
)


def arrays(assignment):
    return routing.Assignment(*(to_numpy(field) for field in assignment))


def test_one_expert_has_every_token_without_a_warning():
    """Keras warns about a softmax over one column; warnings are errors here."""
    a = arrays(routing.top_k_assignment(np.float32([[3.0], [-1.0]]), 1))
    np.testing.assert_array_equal(a.expert_index, [0, 0])
    np.testing.assert_array_equal(a.combine_weights, [1.0, 1.0])
    np.testing.assert_array_equal(a.router_probs, [[1.0], [1.0]])


def test_softmax_then_top_k():
    """Weights are 1/2 and 1/4 of 3/4, and 4/10 and 3/10 of 7/10."""
    a = arrays(routing.top_k_assignment(LOGITS, 2))
    np.testing.assert_array_equal(a.token_index, [0, 0, 1, 1])
    np.testing.assert_array_equal(a.expert_index, [0, 1, 3, 2])
    np.testing.assert_allclose(
        a.combine_weights, [2 / 3, 1 / 3, 4 / 7, 3 / 7], rtol=1e-6
    )
    np.testing.assert_allclose(a.router_probs, np.exp(LOGITS), rtol=1e-6)
    np.testing.assert_allclose(a.router_logits, LOGITS)


def test_weights_not_normalized_are_the_probabilities():
    a = arrays(routing.top_k_assignment(LOGITS, 2, normalize_weights=False))
    np.testing.assert_allclose(
        a.combine_weights, [0.5, 0.25, 0.4, 0.3], rtol=1e-6
    )


@pytest.mark.parametrize("normalize_weights", [True, False])
def test_top_k_then_softmax_sums_to_one_either_way(normalize_weights):
    """A softmax of log p over the chosen is p over the sum of the chosen."""
    a = arrays(
        routing.top_k_assignment(LOGITS, 2, "topk_softmax", normalize_weights)
    )
    np.testing.assert_array_equal(a.expert_index, [0, 1, 3, 2])
    np.testing.assert_allclose(
        a.combine_weights, [2 / 3, 1 / 3, 4 / 7, 3 / 7], rtol=1e-6
    )


def test_sigmoid_scores_each_expert_separately():
    """sigmoid(log(p / (1 - p))) is p; 0.8 and 0.6 need not sum to one."""
    p = np.array([[0.2, 0.8, 0.6, 0.4]], dtype="float32")
    logits = np.log(p / (1 - p))
    a = arrays(routing.top_k_assignment(logits, 2, "sigmoid", False))
    np.testing.assert_array_equal(a.expert_index, [1, 2])
    np.testing.assert_allclose(a.combine_weights, [0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(a.router_probs, p / 2, rtol=1e-6)
    a = arrays(routing.top_k_assignment(logits, 2, "sigmoid", True))
    np.testing.assert_allclose(a.combine_weights, [4 / 7, 3 / 7], rtol=1e-6)


def test_weights_of_sigmoids_that_float32_rounds_to_zero():
    """Far below zero, sigmoid(x) is exp(x): the weights are a softmax."""
    logits = np.float32([[-101.0, -100.0, -120.0]])
    a = arrays(routing.top_k_assignment(logits, 2, "sigmoid", True))
    np.testing.assert_array_equal(a.expert_index, [1, 0])
    first = math.e / (math.e + 1)
    np.testing.assert_allclose(a.combine_weights, [first, 1 - first], rtol=1e-6)


def test_equal_scores_go_to_the_lower_index():
    a = arrays(routing.top_k_assignment(np.zeros((2, 64), "float32"), 3))
    np.testing.assert_array_equal(a.expert_index, [0, 1, 2, 0, 1, 2])


def test_padding_goes_nowhere():
    mask = np.array([False, True])
    a = arrays(
        routing.top_k_assignment(LOGITS, 2, conditions=routing.Conditions(mask))
    )
    np.testing.assert_array_equal(a.expert_index, [4, 4, 3, 2])
    np.testing.assert_allclose(
        a.combine_weights, [0, 0, 4 / 7, 3 / 7], rtol=1e-6
    )


def test_nan_logits_reach_only_their_own_token():
    logits = np.concatenate([LOGITS[:1] * np.nan, LOGITS])
    a = arrays(routing.top_k_assignment(logits, 2))
    np.testing.assert_array_equal(a.expert_index[2:], [0, 1, 3, 2])
    np.testing.assert_allclose(
        a.combine_weights[2:], [2 / 3, 1 / 3, 4 / 7, 3 / 7], rtol=1e-6
    )
    assert set(a.expert_index[:2]) <= {0, 1, 2, 3}


def test_no_tokens():
    a = arrays(routing.top_k_assignment(np.zeros((0, 4), "float32"), 2))
    assert a.expert_index.shape == a.token_index.shape == (0,)
    assert a.router_probs.shape == (0, 4)


@pytest.mark.parametrize(
    "num_tokens, num_experts, top_k, factor, capacity",
    [
        (8, 4, 1, 1.0, 2),  # 8 / 4
        (8, 4, 2, 1.0, 4),  # 16 / 4
        (8, 4, 1, 1.25, 3),  # 10 / 4 = 2.5
        (10, 4, 1, 1.0, 3),  # 10 / 4 = 2.5
        (100, 10, 1, 1.1, 11),  # 110 / 10; in floats 11.000000000000002
        (1, 64, 2, 1.0, 1),  # 2 / 64
        (6, 3, 1, 0.5, 1),  # 3 / 3
        (0, 4, 2, 1.0, 0),
        (100_000, 2, 1, 1.0001, 50_005),  # 100,010 / 2
        (100_000, 2, 1, 1.00049, 50_025),  # 100,049 / 2 = 50,024.5
        (100_000, 2, 1, 0.0004, 20),  # 40 / 2
        (7, 2, 1, 1e-9, 1),  # above 0
        (3_000_000, 4, 2, 1 / 3, 500_000),  # 1,999,999.9999999998 / 4
        (12, 4, 1.5, 1.1, 5),  # 19.8 / 4 = 4.95
    ],
)
def test_expert_capacity(num_tokens, num_experts, top_k, factor, capacity):
    found = routing.expert_capacity(num_tokens, num_experts, top_k, factor)
    assert found == capacity


FACTORS = st.one_of(
    st.sampled_from([1.0001, 1.00049, 0.0004, 1 / 3, 1.1, 1.25, 1e-9]),
    st.floats(1e-6, 9),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    num_tokens=st.integers(0, 2**24),
    num_experts=st.integers(1, 300),
    top_k=st.integers(1, 8),
    factor=FACTORS,
)
def test_capacity_of_numbers_that_a_program_is_given(
    num_tokens, num_experts, top_k, factor
):
    """The capacity of int32 scalars is exact.

    NumPy warns if integers wrap around, and a warning is an error here.
    """
    pairs = math.ceil(Fraction(str(factor)) * top_k * num_tokens)
    wanted = -(-pairs // num_experts)
    for tokens, experts in (
        (np.int32(num_tokens), num_experts),
        (num_tokens, np.int32(num_experts)),
    ):
        found = routing.expert_capacity(tokens, experts, top_k, factor)
        assert found == wanted
        assert found.dtype == np.int32


def probabilities(rows):
    return np.log(np.array(rows, dtype="float32"))


# Tokens 0, 1, 2, and 4 prefer expert 0, and token 3 prefers expert 1.
CROWD = probabilities(
    [[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.8, 0.2]]
)


def test_capacity_by_position_keeps_the_earlier_tokens():
    a = routing.top_k_assignment(CROWD, 1, normalize_weights=False)
    kept = arrays(routing.apply_capacity(a, 2, "position"))
    np.testing.assert_array_equal(kept.expert_index, [0, 0, 2, 1, 2])
    np.testing.assert_allclose(
        kept.combine_weights, [0.6, 0.9, 0, 0.8, 0], rtol=1e-6
    )


def test_capacity_of_each_shard_of_the_tokens():
    """Expert 0 has one place for tokens 0, 1, 2 and one for tokens 3, 4."""
    a = routing.top_k_assignment(CROWD, 1, normalize_weights=False)
    for priority, wanted in (
        ("position", [0, 2, 2, 1, 0]),
        ("score", [2, 0, 2, 1, 0]),
    ):
        kept = arrays(routing.apply_capacity(a, 1, priority, num_shards=2))
        np.testing.assert_array_equal(kept.expert_index, wanted)


@pytest.mark.parametrize("num_shards", [2, 3, 4])
def test_capacity_of_uneven_shards(rng, num_shards):
    """An expert has one place per shard, which its first pair gets.

    Each of seven tokens has two pairs.
    """
    a = routing.top_k_assignment(draw(rng, 7, 3), 2)
    kept = arrays(routing.apply_capacity(a, 1, "position", num_shards))
    a, taken = arrays(a), set()
    for token, expert, found in zip(
        a.token_index, a.expert_index, kept.expert_index, strict=True
    ):
        place = token // -(-7 // num_shards), expert
        assert found == (3 if place in taken else expert)
        taken.add(place)


def test_no_tokens_in_any_shard():
    a = routing.top_k_assignment(CROWD[:0], 1)
    for priority in routing.PRIORITIES:
        kept = arrays(routing.apply_capacity(a, 1, priority, num_shards=2))
        assert kept.expert_index.shape == (0,)


def test_capacity_by_score_keeps_the_highest_scores():
    """0.9 and 0.8 are the two highest of 0.6, 0.9, 0.7, and 0.8."""
    a = routing.top_k_assignment(CROWD, 1, normalize_weights=False)
    kept = arrays(routing.apply_capacity(a, 2, "score"))
    np.testing.assert_array_equal(kept.expert_index, [2, 0, 2, 1, 0])
    np.testing.assert_allclose(
        kept.combine_weights, [0, 0.9, 0, 0.8, 0.8], rtol=1e-6
    )


def test_the_order_in_which_capacity_drops():
    """Position keeps tokens in the order 0, 1, 2, 4, and score 1, 4, 2, 0."""
    a = routing.top_k_assignment(CROWD, 1)
    for priority, order in (
        ("position", [0, 1, 2, 4]),
        ("score", [1, 4, 2, 0]),
    ):
        for capacity in range(5):
            kept = arrays(routing.apply_capacity(a, capacity, priority))
            tokens = np.flatnonzero(kept.expert_index == 0)
            assert sorted(tokens) == sorted(order[:capacity])


def test_position_ranks_by_token_whichever_choice_it_was():
    """Token 0's second choice comes before token 1's first."""
    logits = probabilities([[0.6, 0.4], [0.1, 0.9]])
    a = routing.top_k_assignment(logits, 2)
    kept = arrays(routing.apply_capacity(a, 1, "position"))
    np.testing.assert_array_equal(kept.expert_index, [0, 1, 2, 2])
    kept = arrays(routing.apply_capacity(a, 1, "score"))
    np.testing.assert_array_equal(kept.expert_index, [0, 2, 1, 2])


def test_equal_scores_are_kept_by_position():
    a = routing.top_k_assignment(np.zeros((5, 2), "float32"), 1)
    kept = arrays(routing.apply_capacity(a, 3, "score"))
    np.testing.assert_array_equal(kept.expert_index, [0, 0, 0, 2, 2])


def test_padding_uses_no_capacity():
    mask = np.array([False, False, True, True, True])
    a = routing.top_k_assignment(CROWD, 1, conditions=routing.Conditions(mask))
    for priority in routing.PRIORITIES:
        kept = arrays(routing.apply_capacity(a, 2, priority))
        np.testing.assert_array_equal(kept.expert_index, [2, 2, 0, 1, 0])


def test_a_nan_token_takes_no_place_by_score():
    logits = CROWD.copy()
    logits[0] = np.nan  # its scores count as the lowest
    a = routing.top_k_assignment(logits, 1)
    kept = arrays(routing.apply_capacity(a, 2, "score"))
    np.testing.assert_array_equal(kept.expert_index[1:], [0, 2, 1, 0])
