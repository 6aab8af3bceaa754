"""Check capacity, losses, and statistics of the block by hand."""

import keras
import numpy as np
import pytest
from backend import to_numpy

from keras_moe import MoEBlock


def sorted_by_hand(**options):
    """Return a block of two experts, of which the first gets tokens above 0."""
    block = MoEBlock(2, 4, top_k=1, **options)
    block.build((None, 2))
    block.router.kernel.assign([[1.0, -1.0], [0.0, 0.0]])
    return block


CROWDED = np.array([[3, 1], [1, 1], [2, 1], [-1, 1]], "float32")


@pytest.mark.parametrize(
    "priority, dropped", [("position", [2]), ("score", [1])]
)
def test_capacity_in_training(priority, dropped):
    """Expert 0 keeps C = 1 * 4 * 1.0 / 2 = 2 of its three tokens."""
    block = sorted_by_hand(capacity_factor=1.0, priority=priority)
    y, kept = block(CROWDED, training=True, return_assignment=True)
    index = to_numpy(kept.expert_index)
    assert np.flatnonzero(index == 2).tolist() == dropped
    assert np.flatnonzero((to_numpy(y) == 0).all(-1)).tolist() == dropped
    assert to_numpy(block.fraction_dropped) == pytest.approx([1 / 4])
    np.testing.assert_allclose(to_numpy(block.expert_load), [3 / 4, 1 / 4])


def test_evaluation_has_a_capacity_of_its_own():
    block = sorted_by_hand(capacity_factor=1.0)
    _, kept = block(CROWDED, return_assignment=True)
    assert (to_numpy(kept.expert_index) < 2).all()
    block = sorted_by_hand(eval_capacity_factor=0.5)
    _, kept = block(CROWDED, return_assignment=True)
    np.testing.assert_array_equal(to_numpy(kept.expert_index), [0, 2, 2, 1])
    _, kept = block(CROWDED, training=True, return_assignment=True)
    assert (to_numpy(kept.expert_index) < 2).all()


def test_losses_are_weighted_and_of_training_only():
    """Logits of (x, -x) give p(expert 0) = s(2 x) and f = (3/4, 1/4)."""
    block = sorted_by_hand(load_balancing_weight=0.5, router_z_weight=0.25)
    block(CROWDED)
    assert block.losses == []
    block(CROWDED, training=True)
    balancing, z = (to_numpy(loss) for loss in block.losses)
    p = (1 / (1 + np.exp(-2 * CROWDED[:, 0]))).mean()
    wanted = 0.5 * 2 * (3 / 4 * p + 1 / 4 * (1 - p))
    assert balancing == pytest.approx(wanted, rel=1e-5)
    log_z = np.log(2 * np.cosh(CROWDED[:, 0]))
    assert z == pytest.approx(0.25 * (log_z**2).mean(), rel=1e-5)


def test_the_loss_counts_choices_before_capacity():
    with_capacity = sorted_by_hand(capacity_factor=0.5)
    without = sorted_by_hand()
    for block in (with_capacity, without):
        block(CROWDED, training=True)
    np.testing.assert_array_equal(
        to_numpy(with_capacity.losses[0]), to_numpy(without.losses[0])
    )


def test_statistics_are_means_over_training_batches():
    """The loads (3/4, 1/4) and (0, 1) count, not evaluation or padding."""
    block = sorted_by_hand(capacity_factor=1.0)
    block(CROWDED, training=True)
    block(CROWDED)
    block(CROWDED, training=True, mask=np.zeros(4, bool))
    block(-np.abs(CROWDED), training=True)
    np.testing.assert_allclose(to_numpy(block.expert_load), [3 / 8, 5 / 8])
    np.testing.assert_allclose(
        to_numpy(block.fraction_dropped), [(1 / 4 + 2 / 4) / 2]
    )
    block.reset_statistics()
    np.testing.assert_array_equal(to_numpy(block.expert_load), [0, 0])


def test_statistics_have_a_rank_an_aggregation_and_no_gradient():
    block = sorted_by_hand()
    for weight in block.statistics.weights:
        assert len(weight.shape) == 1
        assert weight.aggregation == "mean"
        assert not weight.trainable
        assert keras.backend.standardize_dtype(weight.dtype) == "float32"
