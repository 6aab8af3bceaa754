"""Compare losses and loads by modality with hand and NumPy values."""

import numpy as np
import pytest
from backend import to_numpy, value_and_gradients
from entropies import entropies_of

from keras_moe import (
    losses,
    metrics,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

LOG2 = np.log(2)


def test_entropy_losses_by_hand():
    """Modalities differ in certainty and in their spread over experts.

    The tokens of modality 0 are certain and use both experts, the token of 1 is
    uncertain, those of 2 are certain and use one expert, and that of 3 is
    padding.
    """
    probs = np.array(
        [[1, 0], [0, 1], [0.5, 0.5], [0, 1], [0, 1], [np.nan, np.nan]],
        "float32",
    )
    ids = np.array([0, 0, 1, 2, 2, 3], "int32")
    mask = np.array([1, 1, 1, 1, 1, 0], "bool")
    local = losses.local_entropy_loss(probs, ids, 4, mask)
    np.testing.assert_allclose(to_numpy(local), [0, LOG2, 0, 0], atol=1e-6)
    spread = losses.global_entropy_loss(probs, ids, 4, mask)
    np.testing.assert_allclose(
        to_numpy(spread), [-LOG2, -LOG2, 0, 0], atol=1e-6
    )
    spread = losses.global_entropy_loss(probs, ids, 4, mask, threshold=0.5)
    np.testing.assert_allclose(to_numpy(spread), [0, 0, 0.5, 0], atol=1e-6)
    tau = np.array([1, 0, 0.2, 9], "float32")
    spread = losses.global_entropy_loss(probs, ids, 4, mask, threshold=tau)
    np.testing.assert_allclose(
        to_numpy(spread), [1 - LOG2, 0, 0.2, 0], atol=1e-6
    )


def test_entropy_losses_equal_numpy(rng):
    probs = rng.dirichlet(np.ones(5), 40).astype("float32")
    ids = rng.integers(0, 3, 40).astype("int32")
    mask = rng.random(40) < 0.8
    local, spread = entropies_of(probs, ids, 3, mask)
    got = losses.local_entropy_loss(probs, ids, 3, mask)
    np.testing.assert_allclose(to_numpy(got), local, rtol=1e-5)
    got = losses.global_entropy_loss(probs, ids, 3, mask)
    np.testing.assert_allclose(to_numpy(got), -spread, rtol=1e-5)
    all_tokens = np.ones(40, "bool")
    local, _ = entropies_of(probs, ids, 3, all_tokens)
    got = losses.local_entropy_loss(probs, ids, 3)
    np.testing.assert_allclose(to_numpy(got), local, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.local_entropy_loss, losses.global_entropy_loss]
)
def test_gradients_of_the_entropy_losses(loss):
    """Gradients are finite if a probability is 0 or a modality is missing.

    The gradients of the second token equal the derivative by hand.
    """
    probs = np.array([[1, 0, 0], [0.7, 0.2, 0.1]], "float32")
    ids = np.array([0, 1], "int32")
    _, (gradient,) = value_and_gradients(lambda p: loss(p, ids, 3), probs)
    assert np.isfinite(gradient).all()
    # d(-p log p)/dp = -(1 + log p), times the modality's weight in the sum.
    _, (of_ones,) = value_and_gradients(lambda p: p[..., 0], probs)
    weight = of_ones[1, 0]  # the second of the same fixed weights
    sign = 1 if loss is losses.local_entropy_loss else -1
    np.testing.assert_allclose(
        gradient[1], -sign * weight * (1 + np.log(probs[1])), rtol=1e-4
    )


def test_load_by_group_by_hand():
    """Tokens have two pairs, group 1's second lost one, and 2 is empty."""
    load = metrics.expert_load_by_group(
        expert_index=np.array([0, 1, 1, 2, 3, 1], "int32"),
        token_index=np.array([0, 0, 1, 1, 2, 2], "int32"),
        group=np.array([[0, 1, 1]], "int32"),
        num_experts=3,
        num_groups=3,
    )
    np.testing.assert_allclose(
        to_numpy(load), [[0.5, 0.5, 0], [0, 2 / 3, 1 / 3], [0, 0, 0]], atol=1e-6
    )
