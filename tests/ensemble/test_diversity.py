"""Compare the diversity of classifiers with counts by hand."""

import keras
import numpy as np
import pytest

from keras_moe import Ensemble
from keras_moe.ensemble import (
    disagreement,
    double_fault,
    mean_over_pairs,
    q_statistic,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

# For ten samples of a and b: n11 = 5, n10 = 2, n01 = 1, n00 = 2.
A = [1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
B = [1, 1, 1, 1, 1, 0, 0, 1, 0, 0]
# For a and c: 2, 5, 3, 0. For b and c: 2, 4, 3, 1.
C = [1, 0, 0, 0, 0, 0, 1, 1, 1, 1]
CORRECT = np.array([A, B, C], bool)


def test_disagreement():
    wanted = [[0, 0.3, 0.8], [0.3, 0, 0.7], [0.8, 0.7, 0]]
    np.testing.assert_allclose(disagreement(CORRECT), wanted)


def test_q_statistic():
    ab = (5 * 2 - 2 * 1) / (5 * 2 + 2 * 1)
    ac = -1.0
    bc = (2 * 1 - 4 * 3) / (2 * 1 + 4 * 3)
    wanted = [[1, ab, ac], [ab, 1, bc], [ac, bc, 1]]
    np.testing.assert_allclose(q_statistic(CORRECT), wanted)
    mean = mean_over_pairs(q_statistic(CORRECT))
    np.testing.assert_allclose(mean, (ab + ac + bc) / 3)


def test_double_fault():
    wanted = [[0.3, 0.2, 0], [0.2, 0.4, 0.1], [0, 0.1, 0.5]]
    np.testing.assert_allclose(double_fault(CORRECT), wanted)


def test_independent_mistakes_have_a_q_of_zero():
    correct = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], bool)
    assert q_statistic(correct)[0, 1] == 0


def test_an_undefined_q_is_excluded_from_the_mean():
    """A member without errors has no Q, because both products are zero."""
    correct = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]], bool)
    pairwise = q_statistic(correct)
    assert np.isnan(pairwise[0]).all()
    assert pairwise[1, 2] == 1.0 == mean_over_pairs(pairwise)
    assert np.isnan(mean_over_pairs(pairwise[:1, :1]))


@pytest.mark.parametrize("correct", [np.ones((2, 3)), np.ones(3, bool), []])
def test_correct_must_be_a_table_of_bool(correct):
    with pytest.raises(ValueError, match="`correct` must be bool"):
        q_statistic(correct)


def identity(width):
    x = keras.Input((2, width))
    return x, keras.layers.Activation("linear")(x)


def pick(width, number):
    """Return a model that outputs one of the two rows of its input."""
    inputs = keras.Input((2, width))
    return keras.Model(inputs, inputs[:, number])


def test_an_ensembles_diversity():
    """Both members are right, only the first is (twice), or both are wrong."""
    x = np.eye(3, dtype="float32")[[[0, 0], [1, 2], [2, 0], [1, 1]]]
    ensemble = Ensemble([pick(3, 0), pick(3, 1)], "soft_vote")
    wanted = {"disagreement": 0.5, "double_fault": 0.25}
    for labels in (np.array([0, 1, 2, 2]), np.eye(3)[[0, 1, 2, 2]]):
        found = ensemble.diversity(x, labels, verbose=0)
        assert {key: found[key] for key in wanted} == wanted
        # n11 = 1, n10 = 2, n01 = 0, n00 = 1
        assert found["q_statistic"] == 1.0


def test_one_output_is_the_second_class():
    x = np.array([[[0.9], [0.2]], [[0.4], [0.3]]], "float32")
    ensemble = Ensemble([pick(1, 0), pick(1, 1)], "soft_vote")
    found = ensemble.diversity(x, np.array([[1], [0]]), verbose=0)
    assert found["disagreement"] == 0.5 and found["double_fault"] == 0.0
    logits = Ensemble([pick(1, 0), pick(1, 1)], "soft_vote", from_logits=True)
    found = logits.diversity(x, np.array([1, 0]), verbose=0)
    assert found["disagreement"] == 0.0 and found["double_fault"] == 0.5
