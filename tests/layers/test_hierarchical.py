"""Compare two-stage routing with values by hand, and with one stage."""

import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy
from router_zoo import arrays

from keras_moe import (
    HierarchicalMoE,
    HierarchicalRouter,
    MoEBlock,
    losses,
    routing,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

LOG = np.log
# One token has logits of two groups of three experts.
GROUPS = np.array([[LOG(3), LOG(1)]], "float32")  # 3/4, 1/4
EXPERTS = np.array([[LOG([1, 2, 5]), LOG([6, 1, 3])]], "float32").reshape(1, 6)


def assigned(*args, **kwargs):
    return arrays(
        routing.hierarchical_assignment(GROUPS, EXPERTS, *args, **kwargs)
    )


def test_probabilities_and_logits_are_of_both_stages():
    a = assigned(2)
    wanted = np.array([[1 / 8, 2 / 8, 5 / 8]]) * 3 / 4
    wanted = np.concatenate([wanted, np.array([[6, 1, 3]]) / 40], axis=1)
    np.testing.assert_allclose(a.router_probs, wanted, rtol=1e-5)
    # The sum of exp(group + expert) is 3 (1 + 2 + 5) + 1 (6 + 1 + 3) = 34.
    np.testing.assert_allclose(a.router_logits, LOG(34 * wanted), rtol=1e-5)


@pytest.mark.parametrize("groups, experts", [(3, 0), (0, 3)])
def test_the_z_loss_depends_on_a_common_offset_of_either_stage(groups, experts):
    """The log-sum-exp grows by 3, and the probabilities do not change."""
    a = routing.hierarchical_assignment(GROUPS + groups, EXPERTS + experts, 2)
    z_loss = to_numpy(losses.router_z_loss(a.router_logits))
    assert z_loss == pytest.approx((LOG(34) + 3) ** 2, rel=1e-5)
    np.testing.assert_allclose(
        to_numpy(a.router_probs), assigned(2).router_probs, rtol=1e-5
    )


@pytest.mark.every_backend
def test_the_softmax_of_the_logits_is_the_probabilities(rng):
    a = arrays(
        routing.hierarchical_assignment(draw(rng, 7, 3), draw(rng, 7, 6), 2)
    )
    sums = np.exp(a.router_logits.astype("float64"))
    sums /= sums.sum(1, keepdims=True)
    np.testing.assert_allclose(a.router_probs, sums, rtol=1e-5)


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "top_k, top_k_groups, normalize, experts, weights",
    [
        # A single chosen group keeps its probability, 3/4.
        (1, 1, True, [2], [3 / 4 * 5 / 8]),
        (2, 1, True, [2, 1], [3 / 4 * 5 / 7, 3 / 4 * 2 / 7]),
        (2, 1, False, [2, 1], [3 / 4 * 5 / 8, 3 / 4 * 2 / 8]),
        # The best of each group are expert 2 (5/8) and expert 3 (6/10).
        (2, 2, True, [2, 3], [3 / 4 * 5 / 8, 1 / 4 * 6 / 10]),
        (
            4,
            2,
            True,
            [2, 1, 3, 5],
            [3 / 4 * 5 / 7, 3 / 4 * 2 / 7, 1 / 4 * 6 / 9, 1 / 4 * 3 / 9],
        ),
    ],
)
def test_choices_and_weights(top_k, top_k_groups, normalize, experts, weights):
    a = assigned(top_k, top_k_groups, normalize)
    np.testing.assert_array_equal(a.expert_index, experts)
    np.testing.assert_allclose(a.combine_weights, weights, rtol=1e-5)


def test_a_group_that_is_off_is_not_chosen():
    """Group 0 and expert 3 are disabled; 4 and 5 have shares of 1 and 3."""
    available = np.array([0, 0, 0, 0, 1, 1], bool)
    a = assigned(2, conditions=routing.Conditions(available=available))
    np.testing.assert_array_equal(a.expert_index, [5, 4])
    np.testing.assert_allclose(a.combine_weights, [3 / 4, 1 / 4], rtol=1e-5)
    available[4] = False  # group 1 has one left: the second pair is left out
    a = assigned(2, conditions=routing.Conditions(available=available))
    np.testing.assert_array_equal(a.expert_index, [5, 6])
    np.testing.assert_allclose(a.combine_weights, [1, 0], rtol=1e-5)


def test_a_replay_without_a_pair_leaves_the_others_their_weights():
    """The logits determine which pairs were lost, so the weights are unchanged.

    The groups' pairs are (2, 1) and (3, 5). Pairs 1, 3, and 5 are lost first,
    and then only pair 1.
    """
    recorded = routing.hierarchical_assignment(GROUPS, EXPERTS, 4, 2)
    index = np.array([2, 6, 6, 6], "int32")
    replay = recorded._replace(expert_index=index)
    a = assigned(4, 2, conditions=routing.Conditions(replay=replay))
    np.testing.assert_array_equal(a.expert_index, index)
    np.testing.assert_allclose(
        a.combine_weights, [3 / 4 * 5 / 7, 0, 0, 0], rtol=1e-5
    )
    replay = recorded._replace(expert_index=np.array([2, 6, 3, 5], "int32"))
    a = assigned(4, 2, conditions=routing.Conditions(replay=replay))
    np.testing.assert_allclose(
        a.combine_weights, [3 / 4 * 5 / 7, 0, 1 / 6, 1 / 12], rtol=1e-5
    )


@pytest.mark.parametrize("top_k", [1, 2])
def test_one_group_is_a_moe_block(rng, top_k):
    """Outputs, losses, and gradients agree, with a capacity and a mask."""
    options = {
        "capacity_factor": 1.0,
        "load_balancing_weight": 1.0,
        "router_z_weight": 0.1,
        "activation": "gelu",
    }
    one = HierarchicalMoE(1, 4, 6, top_k=top_k, **options)
    block = MoEBlock(4, 6, top_k=top_k, **options)
    x = draw(rng, 3, 7, 5)
    mask = np.arange(7) < np.array([[7], [4], [0]])
    for layer in (one, block):
        layer.build(x.shape)
    kernel = to_numpy(block.router.kernel)
    one.router.kernel.assign(np.concatenate([kernel, draw(rng, 5, 1)], 1))
    one.experts.set_weights(block.experts.get_weights())
    results = []
    for layer in (one, block):
        y, gradients = layer_gradients(layer, x, training=True, mask=mask)
        layer.reset_statistics()
        layer(x, training=True, mask=mask)
        added = [to_numpy(loss) for loss in layer.losses[-2:]]
        results.append((y, added, gradients, to_numpy(layer.expert_load)))
    for mine, theirs in zip(results[0][:2], results[1][:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    np.testing.assert_array_equal(results[0][3], results[1][3])
    for name, theirs in results[1][2].items():
        mine = results[0][2][name]
        if "router" in name:  # the group's own column has no effect
            np.testing.assert_allclose(mine[:, 4], 0, atol=1e-6)
            mine = mine[:, :4]
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_both_stages_learn_from_the_outputs(rng):
    layer = HierarchicalMoE(2, 4, 6)
    _, gradients = layer_gradients(layer, draw(rng, 9, 5))
    kernel = next(g for n, g in gradients.items() if "router" in n)
    assert (np.abs(kernel).max(axis=0) > 1e-5).all()


def test_config_has_no_router_in_it():
    layer = HierarchicalMoE(2, 4, 6, top_k_groups=2, jitter=0.1, seed=3)
    config = layer.get_config()
    assert "router" not in config and config["num_groups"] == 2
    again = HierarchicalMoE.from_config(config)
    assert again.get_config() == config
    assert again.router.jitter == 0.1 and again.router.top_k_groups == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((6, 4), "`num_groups` must divide `num_experts`"),
        ((6, 2, 4), "`top_k` must be at most the experts"),
        ((6, 2, 2, 3), "`top_k_groups` must be at most `num_groups`"),
        ((6, 2, 3, 2), "`top_k` must be a multiple of `top_k_groups`"),
        ((6, 0), "`num_groups` must be an integer above 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalRouter(*arguments)
