"""Test `Router`'s options: noise, groups, bias, scale, and null experts."""

import numpy as np
import pytest
from backend import to_numpy, value_and_gradients
from router_zoo import arrays, logit_router

from keras_moe import GShardRouter, MoEBlock, Router, routing


def test_noise_std_adds_normal_noise_in_training():
    router = logit_router(Router(3, noise_std=0.5))
    x = np.zeros((2000, 3), "float32")
    drawn = to_numpy(router(x, training=True).router_logits)
    assert drawn.std() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_array_equal(to_numpy(router(x).router_logits), x)


def test_square_root_of_softplus_by_hand():
    """Softplus of `log(e^s - 1)` is s, so that the scores are 3, 2, and 1."""
    router = logit_router(Router(3, 2, "sqrt_softplus"))
    logits = np.log(np.exp([[9.0, 1.0, 4.0]]) - 1).astype("float32")
    a = arrays(router(logits))
    np.testing.assert_array_equal(a.expert_index, [0, 2])
    np.testing.assert_allclose(a.combine_weights, [3 / 5, 2 / 5], rtol=1e-5)
    np.testing.assert_allclose(a.router_probs, [[3 / 6, 1 / 6, 2 / 6]], 1e-5)


@pytest.mark.parametrize(
    "scoring, power", [("sigmoid", 1.0), ("sqrt_softplus", 0.5)]
)
@pytest.mark.parametrize("normalize_weights", [True, False])
def test_scores_far_below_zero(scoring, power, normalize_weights):
    """These scores are `exp(power * logit)`, which float32 rounds to zero."""

    def weights(logits):
        found = routing.top_k_assignment(
            logits, 2, scoring, normalize_weights, conditions
        )
        return found.combine_weights

    conditions = routing.Conditions(available=np.array([True, True, False]))
    logits = np.array([[-250.0, -251, 9], [-1e4, -1e3, 9]], "float32")
    y, (gradient,) = value_and_gradients(weights, logits)
    assert np.isfinite(gradient).all()
    second = 1 / (1 + np.exp(power))
    wanted = np.array([1 - second, second, 1, 0]) * normalize_weights
    np.testing.assert_allclose(y, wanted, rtol=1e-5)


def test_a_soft_cap_by_hand():
    """`tanh(log(3) / 2)` is 1/2; the cap comes behind the bias."""
    router = Router(3, logit_softcap=2.0, use_bias=True)
    logit_router(router).bias.assign([0, 0, 1])
    x = np.array([[np.log(3), -1e3, -1]], "float32")
    a = arrays(router(x))
    np.testing.assert_allclose(a.router_logits, [[1, -2, 0]], atol=1e-6)


def test_groups_limit_the_choice():
    """One of the groups (0, 1), (2, 3), and (4, 5) is kept.

    With softmax, a group scores as its best expert (DeepSeek-V2). With sigmoid,
    a group scores as the sum of its two best experts (DeepSeek-V3).
    """
    logits = np.array([[3.0, -9, 2, 2, 0, 0]], "float32")
    one = Router(6, 2, num_groups=3)
    a = arrays(logit_router(one, 6)(logits))
    np.testing.assert_array_equal(a.expert_index, [0, 1])
    two = Router(6, 2, "sigmoid", num_groups=3)
    a = arrays(logit_router(two, 6)(logits))
    np.testing.assert_array_equal(a.expert_index, [2, 3])


@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
@pytest.mark.parametrize("group_score", ["best", "two_best"])
def test_the_score_of_a_group_does_not_depend_on_the_scoring(
    scoring, group_score
):
    """The first group has the best expert, the second the two best together.

    The softmax is in the proportions 13 : 0 : 7 : 7 : 1 : 1, and the sigmoids
    are 0.93, 0, 0.88, 0.88, 0.5, and 0.5.
    """
    router = Router(6, 2, scoring, num_groups=3, group_score=group_score)
    logits = np.log([[13.0, 1e-5, 7, 7, 1, 1]]).astype("float32")
    a = arrays(logit_router(router, 6)(logits))
    wanted = [0, 1] if group_score == "best" else [2, 3]
    np.testing.assert_array_equal(a.expert_index, wanted)


def test_expert_bias_changes_the_choice_and_not_the_weight():
    """A bias of 0.6 ranks a probability of 1/8 above 5/8 and 2/8."""
    router = logit_router(
        Router(3, 1, normalize_weights=False, expert_bias=True)
    )
    router.expert_bias_weight.assign([0.0, 0.0, 0.6])
    a = arrays(router(np.log([[5.0, 2.0, 1.0]]).astype("float32")))
    np.testing.assert_array_equal(a.expert_index, [2])
    np.testing.assert_allclose(a.combine_weights, [1 / 8], rtol=1e-5)


def test_expert_bias_moves_against_the_load_in_training():
    """Loads of 3, 0, and 1 (mean 4/3) move the biases down, up, and up."""
    router = logit_router(Router(3, 1, expert_bias=True, expert_bias_step=0.5))
    x = np.array([[9, 0, 0], [9, 0, 0], [9, 0, 0], [0, 0, 9]], "float32")
    router(x)
    np.testing.assert_array_equal(router.expert_bias_weight.numpy(), [0, 0, 0])
    router(x, training=True)
    moved = router.expert_bias_weight.numpy()
    np.testing.assert_allclose(moved, [-0.5, 0.5, 0.5])


def test_an_expert_bias_without_a_step_does_not_move():
    router = logit_router(Router(3, 1, expert_bias=True, expert_bias_step=0))
    bias = np.array([0.5, -0.25, 0.125], "float32")
    router.expert_bias_weight.assign(bias)
    x = np.array([[9, 0, 0], [9, 0, 0], [0, 0, 9]], "float32")
    router(x, training=True)
    np.testing.assert_array_equal(router.expert_bias_weight.numpy(), bias)


def test_a_scaling_factor_comes_last():
    router = logit_router(Router(3, 2, routed_scaling_factor=2.5))
    a = arrays(router(np.log([[5.0, 2.0, 1.0]]).astype("float32")))
    wanted = 2.5 * np.array([5 / 7, 2 / 7])
    np.testing.assert_allclose(a.combine_weights, wanted, rtol=1e-5)


def test_normalized_inputs_by_hand():
    """The root mean square of (3, 4, 0, 0) is 5/2, and `sqrt(D)` is 2."""
    router = Router(4, normalize_inputs=True)
    logit_router(router, 4).input_scale.assign([1, 2, 3, 4])
    a = arrays(router(np.array([[3, 4, 0, 0], [0, 0, 0, 0]], "float32")))
    wanted = [[0.6, 1.6, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(a.router_logits, wanted, atol=1e-6)


def test_a_scale_of_each_expert_by_hand():
    """It multiplies normalized weights, not those of null experts."""
    router = Router(2, 2, expert_scale=True, num_null_experts=1)
    logit_router(router).expert_scale_weight.assign([10, -2])
    x = np.log([[1.0, 2, 1e-9], [3.0, 1e-9, 1]]).astype("float32")
    a = arrays(router(x))
    np.testing.assert_array_equal(a.expert_index, [1, 0, 0, 3])
    wanted = [-4 / 3, 10 / 3, 7.5, 0.25]
    np.testing.assert_allclose(a.combine_weights, wanted, rtol=1e-5)
    np.testing.assert_allclose(a.router_probs[0], [1 / 3, 2 / 3], rtol=1e-5)


def test_gshard_compares_weights_without_the_scale():
    """The second weight, 1/3, is above the threshold; 0.1 * 1/3 is below."""
    router = GShardRouter(3, "threshold", threshold=0.2, expert_scale=True)
    logit_router(router).expert_scale_weight.assign([0.1, 0.1, 0.1])
    a = arrays(router(np.log([[2.0, 1.0, 1e-9]]).astype("float32")))
    np.testing.assert_array_equal(a.expert_index, [0, 1])
    np.testing.assert_allclose(a.combine_weights, [2 / 30, 1 / 30], rtol=1e-5)


def test_null_experts_by_hand():
    """The token's two best are expert 1 (weight 3/5) and identity (2/5).

    The columns are experts 0 and 1, and the zero, identity, and constant null
    experts.
    """
    block = MoEBlock(
        2, 4, router=Router(2, 2, num_null_experts=3), use_bias=False
    )
    block.build((None, 5))
    block.router.kernel.assign(np.eye(5))
    x = np.log([[1.0, 3e3, 1.0, 2e3, 1.0]]).astype("float32")
    y, a = block(x, return_assignment=True)
    np.testing.assert_array_equal(to_numpy(a.expert_index), [1, 4])
    np.testing.assert_allclose(to_numpy(a.combine_weights), [0.6, 0.4], 1e-4)
    up, down = (
        to_numpy(getattr(block.experts, f"{n}_kernel"))[1]
        for n in ("up", "down")
    )
    wanted = 0.6 * np.maximum(x @ up, 0) @ down + 0.4 * x
    np.testing.assert_allclose(to_numpy(y), wanted, rtol=1e-4, atol=1e-4)
    probs = to_numpy(a.router_probs)
    np.testing.assert_allclose(probs, [[1 / 3001, 3000 / 3001]], rtol=1e-3)


def test_a_constant_null_expert_by_hand():
    """MoE++, eq. 6, gives x / 4 + 3 v / 4 for softmax(W x) = (1/4, 3/4)."""
    block = MoEBlock(1, 4, router=Router(1, 1, num_null_experts=3))
    block.build((None, 4))
    block.router.kernel.assign(np.eye(4))
    x = np.array([[0.0, 0, 0, 1]], "float32")  # the constant's column is last
    mixer = np.zeros((4, 2))
    mixer[3, 1] = np.log(3)
    block.null_experts.mixer_kernel.assign(mixer)
    block.null_experts.vectors.assign([[8.0, 4, 0, 0]])
    y = to_numpy(block(x))
    np.testing.assert_allclose(y, [[6, 3, 0, 0.25]], rtol=1e-4)


def test_identity_null_experts_by_hand():
    """Both null experts are chosen, with the softmax's 5/10 and 3/10."""
    router = Router(
        2,
        2,
        normalize_weights=False,
        num_null_experts=2,
        null_outputs="identity",
    )
    block = MoEBlock(2, 4, router=router)
    block.build((None, 4))
    router.kernel.assign(np.eye(4))
    x = np.log([[1.0, 1, 5, 3]]).astype("float32")
    y, a = block(x, return_assignment=True)
    np.testing.assert_array_equal(to_numpy(a.expert_index), [3, 4])
    np.testing.assert_allclose(to_numpy(y), 0.8 * x, rtol=1e-5)
    assert not block.null_experts.weights


def test_the_bias_of_identity_null_experts():
    """It changes the choice; training moves the bias of experts only."""
    router = Router(
        2,
        1,
        expert_bias=True,
        expert_bias_step=0.5,
        num_null_experts=2,
        null_outputs="identity",
    )
    logit_router(router, 4).expert_bias_weight.assign([0, 0, 2, 1])
    x = np.array([[9, 0, 0, 0]] * 3, "float32")
    a = arrays(router(x, training=True))
    np.testing.assert_array_equal(a.expert_index, [3, 3, 3])
    bias = router.expert_bias_weight
    np.testing.assert_array_equal(bias.numpy(), [0, 0, 2, 1])
    bias.assign([0, 0, 0, 1 / 4])
    router(x, training=True)  # loads of 3 and 0
    np.testing.assert_array_equal(bias.numpy(), [-0.5, 0.5, 0, 1 / 4])


def test_zero_experts_cost_and_give_nothing():
    block = MoEBlock(1, 4, router=Router(1, 1, num_null_experts=1))
    block.build((None, 2))
    block.router.kernel.assign(np.eye(2))
    y, a = block(np.array([[0.0, 5.0]]), return_assignment=True, training=True)
    np.testing.assert_array_equal(to_numpy(a.expert_index), [2])
    np.testing.assert_array_equal(to_numpy(y), [[0, 0]])
    np.testing.assert_array_equal(to_numpy(block.expert_load), [0])
