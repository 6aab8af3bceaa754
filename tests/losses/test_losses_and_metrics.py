"""Compare auxiliary losses and metrics with values derived by hand."""

import math

import numpy as np
import pytest
from backend import to_numpy, value_and_gradients

from keras_moe import losses, metrics

pytestmark = pytest.mark.fast

PROBS = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]], dtype="float32")
ONLY_FIRST_TWO = np.array([True, True, False])


def test_load_balancing_loss():
    """f = (2/3, 1/3) and P = (3/4, 1/4) give 2 (1/2 + 1/12) = 7/6."""
    loss = losses.load_balancing_loss(PROBS, np.array([1, 0, 0]))
    assert to_numpy(loss) == pytest.approx(7 / 6)


@pytest.mark.parametrize("num_experts, top_k", [(4, 1), (4, 2), (8, 3)])
def test_load_balancing_loss_is_one_at_perfect_balance(num_experts, top_k):
    probs = np.full((num_experts, num_experts), 1 / num_experts)
    experts = (np.arange(num_experts)[:, None] + np.arange(top_k)) % num_experts
    loss = losses.load_balancing_loss(probs, experts)
    assert to_numpy(loss) == pytest.approx(1.0)


def test_load_balancing_loss_is_e_when_one_expert_takes_all():
    probs = np.tile(np.array([0.0, 1.0, 0.0, 0.0]), (5, 1))
    loss = losses.load_balancing_loss(probs, np.full(5, 1))
    assert to_numpy(loss) == pytest.approx(4.0)


@pytest.mark.parametrize("marked", [True, False])
def test_load_balancing_loss_without_padding(marked):
    """The first two tokens have f = (1/4, 3/4) and P = (5/8, 3/8).

    The loss is 2 (5/32 + 9/32) = 7/8, whether or not the pairs of padding have
    the index E, which a router gives them.
    """
    padding = [2, 2] if marked else [0, 1]
    experts = np.array([0, 1, 1, 1, *padding])
    for shape in ((6,), (3, 2)):
        loss = losses.load_balancing_loss(
            PROBS, experts.reshape(shape), ONLY_FIRST_TWO
        )
        assert to_numpy(loss) == pytest.approx(7 / 8)


def test_load_balancing_gradient_flows_through_the_probabilities():
    """dL/dprobs[t, e] = E f_e / T is 2 (2/3, 1/3) / 3."""
    _, (gradient,) = value_and_gradients(
        lambda p: losses.load_balancing_loss(p, np.array([1, 0, 0])), PROBS
    )
    from backend import upstream

    wanted = np.tile([4 / 9, 2 / 9], (3, 1)) * upstream(())
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5)


def test_router_z_loss():
    """The loss is the mean of log(1 + 3)^2 and log(4 + 12)^2."""
    logits = np.log(np.array([[1, 3], [4, 12]], dtype="float32"))
    wanted = (4 + 16) / 2 * math.log(2) ** 2
    assert to_numpy(losses.router_z_loss(logits)) == pytest.approx(wanted)
    mask = np.array([False, True])
    wanted = 16 * math.log(2) ** 2
    assert to_numpy(losses.router_z_loss(logits, mask)) == pytest.approx(wanted)


def test_importance_loss():
    """Importances 9/4 and 3/4 have a mean of 3/2 and a deviation of 3/4."""
    assert to_numpy(losses.importance_loss(PROBS)) == pytest.approx(1 / 4)


def test_importance_loss_without_padding():
    """Importances 5/4 and 3/4 have a mean of 1 and a deviation of 1/4."""
    loss = losses.importance_loss(PROBS, ONLY_FIRST_TWO)
    assert to_numpy(loss) == pytest.approx(1 / 16)


def test_losses_of_padding_alone_are_zero():
    no_token = np.zeros(3, bool)
    nothing = np.full(3, 2)
    values = [
        losses.load_balancing_loss(PROBS, nothing, no_token),
        losses.router_z_loss(PROBS, no_token),
        losses.importance_loss(PROBS, no_token),
    ]
    assert [float(to_numpy(v)) for v in values] == [0.0, 0.0, 0.0]


def test_losses_of_no_tokens_are_zero():
    probs = np.zeros((0, 2), "float32")
    none, mask = np.zeros(0, "int32"), np.zeros(0, bool)
    values = [
        losses.load_balancing_loss(probs, none),
        losses.load_balancing_loss(probs, none, mask),
        losses.router_z_loss(probs),
        losses.importance_loss(probs, mask),
    ]
    assert [float(to_numpy(v)) for v in values] == [0.0] * 4


def test_nan_in_padding_changes_no_loss():
    poisoned = PROBS.copy()
    poisoned[2] = np.nan
    experts = np.array([0, 1, 2])
    for loss in (
        lambda p: losses.load_balancing_loss(p, experts, ONLY_FIRST_TWO),
        lambda p: losses.router_z_loss(p, ONLY_FIRST_TWO),
        lambda p: losses.importance_loss(p, ONLY_FIRST_TWO),
    ):
        assert to_numpy(loss(poisoned)) == to_numpy(loss(PROBS))


def test_expert_load_and_imbalance():
    """One of seven pairs is not computed, and 3, 2, and 1 pairs remain."""
    load = metrics.expert_load(np.array([0, 0, 0, 1, 1, 2, 3]), 3)
    np.testing.assert_allclose(to_numpy(load), [1 / 2, 1 / 3, 1 / 6])
    assert to_numpy(metrics.load_imbalance(load)) == pytest.approx(1.5)
    assert to_numpy(metrics.load_imbalance([3, 2, 1])) == pytest.approx(1.5)
    nothing = metrics.expert_load(np.array([3, 3]), 3)
    np.testing.assert_array_equal(to_numpy(nothing), [0, 0, 0])
    assert to_numpy(metrics.load_imbalance(nothing)) == 0


def test_fraction_dropped():
    """One of three routed pairs is dropped, and padding does not count."""
    before, after = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2])
    dropped = metrics.fraction_dropped(before, after, 2)
    assert to_numpy(dropped) == pytest.approx(1 / 3)
    nothing = np.array([2, 2])
    assert to_numpy(metrics.fraction_dropped(nothing, nothing, 2)) == 0


def test_router_entropy():
    """The entropies are ln 2, ln 4 - 3/4 ln 3, and 0."""
    entropies = [math.log(2), math.log(4) - 0.75 * math.log(3), 0.0]
    entropy = metrics.router_entropy(PROBS)
    assert to_numpy(entropy) == pytest.approx(sum(entropies) / 3)
    entropy = metrics.router_entropy(PROBS, ONLY_FIRST_TWO)
    assert to_numpy(entropy) == pytest.approx(sum(entropies[:2]) / 2)
