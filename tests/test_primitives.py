"""Ranking, turning round and counting, against NumPy."""

import numpy as np
import pytest
from backend import to_numpy

from keras_moe import kernels


@pytest.mark.parametrize("rows", [50, 600])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_top_k_are_the_largest_and_ties_go_to_the_lower_column(
    rng, rows, top_k
):
    """Few values, so that most are tied; NumPy's stable sort is the oracle."""
    scores = rng.integers(-3, 3, size=(rows, 8)).astype("float32") / 7
    scores[rng.random(scores.shape) < 0.1] = -0.0
    wanted = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    index = to_numpy(kernels.top_k_index(scores, top_k))
    assert index.dtype == "int32"
    np.testing.assert_array_equal(index, wanted)


@pytest.mark.parametrize("rows", [1, 1000])
def test_top_k_tells_neighbouring_floats_apart(rows):
    scores = np.full((rows, 6), 0.1, "float32")
    scores[:, 4] = np.nextafter(np.float32(0.1), np.float32(1))
    scores[:, 1] = -np.nextafter(np.float32(0.1), np.float32(1))
    scores[:, 2] = -scores[:, 0]
    index = to_numpy(kernels.top_k_index(scores, 6))
    np.testing.assert_array_equal(index, [[4, 0, 3, 5, 2, 1]] * rows)


@pytest.mark.parametrize("rows", [1, 1000])
def test_top_k_of_infinities_and_nan(rows):
    row = [np.nan, np.inf, -np.inf, 0.5, -0.5]
    scores = np.array([row] * rows, "float32")
    index = to_numpy(kernels.top_k_index(scores, 5))
    np.testing.assert_array_equal(index, [[1, 3, 0, 4, 2]] * rows)


@pytest.mark.parametrize("size", [0, 1, 40])
def test_inverse_permutation(rng, size):
    order = rng.permutation(size).astype("int32")
    place = to_numpy(kernels.inverse_permutation(order))
    assert place.dtype == "int32"
    np.testing.assert_array_equal(place[order], np.arange(size))


def test_group_sizes_count_each_expert_and_skip_index_e():
    sizes = kernels.group_sizes_of(np.array([2, 0, 2, 3, 3, 2], "int32"), 3)
    np.testing.assert_array_equal(to_numpy(sizes), [1, 0, 3])
