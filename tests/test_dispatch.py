"""`dispatch` and `combine` are exact inverses, in values and gradients."""

import numpy as np
import pytest
from backend import to_numpy, value_and_gradients
from keras import ops

from keras_moe import dispatch

pytestmark = pytest.mark.fast

NUM_EXPERTS = 3
# The pair with index 3 is not computed.
EXPERT_INDEX = np.array([2, 0, 1, 0, 3, 1, 0, 2], "int32")
TOKEN_INDEX = np.array([0, 0, 1, 1, 2, 2, 3, 3], "int32")


def test_sorting_is_stable_and_counts():
    order, counts = dispatch.sort_by_expert(EXPERT_INDEX, NUM_EXPERTS)
    np.testing.assert_array_equal(
        to_numpy(order.order), [1, 3, 6, 2, 5, 0, 7, 4]
    )
    np.testing.assert_array_equal(
        to_numpy(order.place), [5, 0, 3, 1, 7, 4, 2, 6]
    )
    np.testing.assert_array_equal(to_numpy(counts), [3, 2, 2])


@pytest.mark.parametrize("pairs_per_token", [2, None])
def test_dispatch_puts_each_token_at_its_pairs_places(rng, pairs_per_token):
    tokens = rng.normal(size=(4, 5)).astype("float32")
    order, _ = dispatch.sort_by_expert(EXPERT_INDEX, NUM_EXPERTS)
    rows = dispatch.dispatch(tokens, TOKEN_INDEX, order, pairs_per_token)
    np.testing.assert_array_equal(
        to_numpy(rows), tokens[[0, 1, 3, 1, 2, 0, 3, 2]]
    )


@pytest.mark.parametrize("pairs_per_token", [2, None])
def test_combine_undoes_dispatch(rng, pairs_per_token):
    """With weights that sum to one, `combine` returns each token unchanged."""
    tokens = rng.normal(size=(4, 5)).astype("float32")
    weights = np.array([0.3, 0.7, 0.5, 0.5, 0.9, 0.1, 1, 0], "float32")
    order, _ = dispatch.sort_by_expert(EXPERT_INDEX, NUM_EXPERTS)
    rows = dispatch.dispatch(tokens, TOKEN_INDEX, order, pairs_per_token)
    back = dispatch.combine(
        rows, TOKEN_INDEX, weights, order, 4, pairs_per_token
    )
    np.testing.assert_allclose(to_numpy(back), tokens, rtol=1e-6)


def test_gradients_are_those_of_the_matrices(rng):
    """The gradients equal those of dense matrices, derived by hand.

    `dispatch` is rows = S x with S[i, token of sorted pair i] = 1, and
    `combine` is y = C rows with C[token, i] = weight. The sum of y weighted by
    U has dL/dx = S^T C^T U and dL/dw_p = row of pair p . U[token of p].
    """
    tokens = rng.normal(size=(4, 5)).astype("float32")
    weights = rng.uniform(size=8).astype("float32")
    order = np.array([1, 3, 6, 2, 5, 0, 7, 4])
    S = np.eye(4)[TOKEN_INDEX[order]]
    C = S.T * weights[order]

    def function(tokens, weights, pairs_per_token):
        order_, _ = dispatch.sort_by_expert(EXPERT_INDEX, NUM_EXPERTS)
        rows = dispatch.dispatch(tokens, TOKEN_INDEX, order_, pairs_per_token)
        return dispatch.combine(
            rows, TOKEN_INDEX, weights, order_, 4, pairs_per_token
        )

    from backend import upstream

    U = upstream((4, 5))
    for pairs_per_token in (2, None):
        y, (dx, dw) = value_and_gradients(
            lambda t, w, k=pairs_per_token: function(t, w, k), tokens, weights
        )
        np.testing.assert_allclose(y, C @ S @ tokens, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dx, S.T @ C.T @ U, rtol=1e-5, atol=1e-6)
        wanted = (tokens[TOKEN_INDEX] * U[TOKEN_INDEX]).sum(1)
        np.testing.assert_allclose(dw, wanted, rtol=1e-5, atol=1e-6)


def test_a_row_of_nan_reaches_only_its_own_token(rng):
    rows = rng.normal(size=(8, 5)).astype("float32")
    rows[3] = np.nan  # the fourth sorted place: pair 2, token 1
    order, _ = dispatch.sort_by_expert(EXPERT_INDEX, NUM_EXPERTS)
    for pairs_per_token in (2, None):
        back = dispatch.combine(
            rows, TOKEN_INDEX, np.ones(8), order, 4, pairs_per_token
        )
        finite = np.isfinite(to_numpy(back)).all(axis=1)
        np.testing.assert_array_equal(finite, [True, False, True, True])


@pytest.mark.parametrize("pairs_per_token", [2, None])
def test_no_tokens(pairs_per_token):
    nothing = np.zeros(0, "int32")
    order, counts = dispatch.sort_by_expert(nothing, NUM_EXPERTS)
    tokens = ops.zeros((0, 5))
    rows = dispatch.dispatch(tokens, nothing, order, pairs_per_token)
    back = dispatch.combine(
        rows, nothing, np.zeros(0), order, 0, pairs_per_token
    )
    assert tuple(rows.shape) == tuple(back.shape) == (0, 5)
    np.testing.assert_array_equal(to_numpy(counts), [0, 0, 0])
