"""Compare each learned router with its paper's equations."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from keras import ops
from router_zoo import arrays, logit_router

from keras_moe import (
    AttentionRouter,
    CosineRouter,
    GShardRouter,
    MoEBlock,
    NoisyTopKRouter,
    SinkhornRouter,
    SparseMixerRouter,
    SwitchRouter,
    losses,
    routing,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

D = 3


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def test_switch_sends_each_token_to_one_expert_by_its_probability():
    """Logits of log 1, log 2, log 5 give 5/8 (Fedus et al. 2021, eq. 1-2)."""
    router = logit_router(SwitchRouter(3))
    a = arrays(router(np.log([[1.0, 2.0, 5.0], [4, 3, 1]]).astype("float32")))
    np.testing.assert_array_equal(a.expert_index, [2, 0])
    np.testing.assert_allclose(a.combine_weights, [5 / 8, 4 / 8], rtol=1e-5)


def test_switch_jitters_its_inputs_in_training():
    """Inputs of 1 times U(1 - eps, 1 + eps) give logits within eps of 1."""
    router = logit_router(SwitchRouter(3, jitter=0.1))
    x = np.ones((200, 3), "float32")
    drawn = to_numpy(router(x, training=True).router_logits)
    assert np.abs(drawn - 1).max() <= 0.1 + 1e-6
    assert 0.1 / 3**0.5 == pytest.approx(drawn.std(), rel=0.1)
    np.testing.assert_array_equal(to_numpy(router(x).router_logits), x)


def noise_of(router, shape):
    """Return the noise that a router of this seed draws first."""
    seed = keras.random.SeedGenerator(router.seed)
    return to_numpy(keras.random.normal(shape, seed=seed))


@pytest.mark.every_backend
def test_noisy_top_k_in_training(rng):
    """NumPy computes eq. 3-11 of Shazeer et al. 2017 with the same noise."""
    from math import erf

    router = logit_router(NoisyTopKRouter(3, 2, 0.3, 0.7, seed=5))
    noise_kernel = draw(rng, D, 3)
    router.noise_kernel.assign(noise_kernel)
    x = draw(rng, 6, D)
    a = arrays(router(x, training=True))
    std = np.log1p(np.exp(x @ noise_kernel)) + 0.01
    noisy = x + noise_of(router, (6, 3)) * std
    order = np.argsort(-noisy, axis=-1)[:, :2]
    np.testing.assert_array_equal(a.expert_index, order.ravel())
    gates = softmax(np.take_along_axis(noisy, order, -1))
    np.testing.assert_allclose(a.combine_weights, gates.ravel(), rtol=1e-4)
    importance = np.zeros((6, 3))
    np.put_along_axis(importance, order, gates, -1)
    threshold = np.sort(noisy, axis=-1)[:, 1:2]  # the 2nd largest of 3
    z = (x - threshold) / std
    load = 0.5 * (1 + np.vectorize(erf)(z / 2**0.5))

    def squared_variation(values):
        total = values.sum(0)
        return (total.std() / total.mean()) ** 2

    wanted = 0.3 * squared_variation(importance)
    wanted += 0.7 * squared_variation(load)
    assert a.router_loss == pytest.approx(wanted, rel=1e-4)


def test_noisy_top_k_is_plain_outside_training(rng):
    router = logit_router(NoisyTopKRouter(3))
    x = draw(rng, 5, D)
    one, other = arrays(router(x)), arrays(router(x))
    np.testing.assert_array_equal(one.combine_weights, other.combine_weights)
    assert one.router_loss == 0
    best = -np.sort(-x, axis=-1)[:, :2]
    np.testing.assert_allclose(
        one.combine_weights, softmax(best).ravel(), rtol=1e-5
    )


def test_sparse_mixer_by_hand():
    """A logit z is near the best m if `m - z <= max(|z|, m) / 2`.

    First token: 3 is near 4, 1 is near neither 4 nor 3. Second token: -1.5 is
    near -1, and -3 is near -1.5.
    """
    router = logit_router(SparseMixerRouter(3, margin=0.25))
    a = arrays(router(np.array([[1, 4, 3], [-1, -3, -1.5]], "float32")))
    np.testing.assert_array_equal(a.expert_index, [1, 2, 0, 2])
    e = np.exp
    wanted = [1 / (1 + e(-1)), 1, 1 / (1 + e(-0.5)), 1 / (1 + e(-1.5))]
    np.testing.assert_allclose(a.combine_weights, wanted, rtol=1e-5)


def test_sparse_mixer_draws_by_the_softmax_in_training():
    """A drawn expert that is not the best has a third or all of its weight."""
    router = logit_router(SparseMixerRouter(3, margin=1.0, seed=1))
    logits = np.array([1.0, 0.5, 0.25], "float32")
    a = arrays(router(np.tile(logits, (4000, 1)), training=True))
    first = a.expert_index[::2]
    probs = softmax(logits)
    share = np.bincount(first, minlength=3) / 4000
    np.testing.assert_allclose(share, probs, atol=0.03)
    ratio = a.combine_weights[::2] / probs[first]
    np.testing.assert_allclose(ratio[first == 0], 1, rtol=1e-5)
    is_whole = np.abs(ratio[first != 0] - 1) < 1e-5
    assert is_whole.mean() == pytest.approx(0.25, abs=0.04)
    shortened = ratio[first != 0][~is_whole]
    np.testing.assert_allclose(shortened, 1 / 3, rtol=1e-4)
    assert (a.expert_index[::2] != a.expert_index[1::2]).all()


def test_load_loss_as_vmoe_derives_it():
    """V-MoE's example has three tokens, three experts, K = 2, and noise 0.1.

    With the second largest noisy logit of each token as the threshold, the mean
    probabilities of being chosen again are (0.999, 0.277, 0.234), which have a
    squared coefficient of variation of 0.4857.
    """
    logits = np.array(
        [[0.9, 0.06, 0.04], [0.7, 0.18, 0.12], [0.85, 0.05, 0.1]], "float32"
    )
    noise = np.array(
        [
            [-0.037, 0.026, -0.018],
            [-0.074, 0.045, -0.015],
            [-0.067, -0.059, 0.073],
        ],
        "float32",
    )
    loss = losses.load_loss(logits, logits + noise, 0.1, 2)
    assert to_numpy(loss) == pytest.approx(0.485738645, rel=1e-5)
    padded = losses.load_loss(
        np.concatenate([logits, [[9, 9, 9]]]).astype("float32"),
        np.concatenate([logits + noise, [[9, 9, 9]]]).astype("float32"),
        0.1,
        2,
        np.array([True, True, True, False]),
    )
    assert to_numpy(padded) == pytest.approx(0.485738645, rel=1e-5)


VMOE_GATES = np.array(
    [[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.8, 0.2, 0.0]],
    "float32",
)


def test_gshard_loss_as_vmoe_derives_it():
    """The loss is 3 * 5.8 / 16 = 1.0875.

    The factors are the 3 experts, the mean gates (1.7, 1.1, 1.2) / 4, and the
    shares (2, 0, 2) / 4 of first choices.
    """
    loss = losses.load_balancing_loss(VMOE_GATES, VMOE_GATES.argmax(-1))
    assert to_numpy(loss) == pytest.approx(1.0875, rel=1e-6)


def test_importance_loss_as_vmoe_derives_it():
    """The sums (1.7, 1.1, 1.2) have a mean of 4/3 and a std of 0.2624669."""
    wanted = (0.2624669 / (4 / 3)) ** 2
    loss = losses.importance_loss(VMOE_GATES)
    assert to_numpy(loss) == pytest.approx(wanted, rel=1e-5)


SECOND = np.log([[3.0, 1.0, 1e-9], [1.0, 1e-9, 1.0]]).astype("float32")


def test_gshard_keeps_a_second_expert_above_the_threshold():
    """The second weight 1/4 is dropped, and the first weight stays 3/4."""
    router = logit_router(GShardRouter(3, "threshold", threshold=0.3))
    a = arrays(router(SECOND))
    np.testing.assert_array_equal(a.expert_index, [0, 3, 0, 2])
    np.testing.assert_allclose(a.combine_weights, [0.75, 0, 0.5, 0.5], 1e-4)


@pytest.mark.every_backend
def test_gshard_keeps_a_second_expert_in_proportion_to_its_weight():
    """min(1, w2 / 0.5) is 1/2 for the first token and 1 for the second."""
    router = logit_router(GShardRouter(3, "random", threshold=0.5))
    a = arrays(router(np.repeat(SECOND, 2000, axis=0), training=True))
    kept = (a.expert_index.reshape(2, 2000, 2)[:, :, 1] < 3).mean(1)
    assert kept[0] == pytest.approx(0.5, abs=0.04)
    assert kept[1] == 1
    evaluated = arrays(router(SECOND))
    np.testing.assert_array_equal(evaluated.expert_index, [0, 1, 0, 2])


@pytest.mark.parametrize("second_expert", ["random", "threshold", "all"])
def test_gshard_balances_first_choices(rng, second_expert):
    """The loss is that of Lepikhin et al. 2020, algorithm 1.

    That loss is E times the sum, over experts, of the share of first choices
    (before any second expert is dropped) times the mean probability.
    """
    router = GShardRouter(4, second_expert, threshold=0.5)
    block = MoEBlock(4, 5, router=router, load_balancing_weight=1.0)
    x = draw(rng, 40, D)
    block(x)
    probs = softmax(x.astype("float64") @ router.kernel.numpy())
    share = np.bincount(probs.argmax(1), minlength=4) / 40
    block(x, training=True)
    (loss,) = block.losses
    wanted = 4 * (share * probs.mean(0)).sum()
    assert to_numpy(loss) == pytest.approx(wanted, rel=1e-5)


def test_noisy_top_k_losses_are_of_the_real_experts(rng):
    """Importance and load are those of the first three of five columns.

    The other two columns are null experts. The threshold is the K-th best of
    all five.
    """
    from math import erf

    router = logit_router(
        NoisyTopKRouter(3, 2, 0.3, 0.7, num_null_experts=2, seed=5), 5
    )
    router.noise_kernel.assign(draw(rng, 5, 5))
    x = draw(rng, 8, 5)
    a = arrays(router(x, training=True))
    std = np.log1p(np.exp(x @ router.noise_kernel.numpy())) + 0.01
    noisy = x + noise_of(router, (8, 5)) * std
    order = np.argsort(-noisy, axis=-1)[:, :2]
    importance = np.zeros((8, 5))
    gates = softmax(np.take_along_axis(noisy, order, -1))
    np.put_along_axis(importance, order, gates, -1)
    threshold = np.sort(noisy, axis=-1)[:, 3:4]
    load = 0.5 * (1 + np.vectorize(erf)((x - threshold) / std / 2**0.5))
    wanted = 0.0
    for weight, values in ((0.3, importance), (0.7, load)):
        total = values[:, :3].sum(0)
        wanted += weight * (total.std() / total.mean()) ** 2
    assert a.router_loss == pytest.approx(wanted, rel=1e-4)


def test_drop_weak_second_by_given_noise():
    """A second expert stays if noise * 0.5 < w2 = 1/4, as for 0.4, not 0.6."""
    logits = np.repeat(SECOND[:1], 2, axis=0)
    a = routing.drop_weak_second(
        routing.top_k_assignment(logits, 2), 0.5, ops.array([0.4, 0.6])
    )
    np.testing.assert_array_equal(to_numpy(a.expert_index), [0, 1, 0, 3])


def test_sinkhorn_of_two_by_two():
    """The diagonal of the plan is sqrt(ad) / (sqrt(ad) + sqrt(bc)).

    The plan is exp(logits) = [[a, b], [c, d]], scaled to a doubly stochastic
    matrix. Scaling columns to 1 and rows to 1 agree for two tokens and two
    experts.
    """
    a, b, c, d = 8.0, 2.0, 3.0, 1.0
    logits = np.log([[a, b], [c, d]]).astype("float32")
    plan = np.exp(to_numpy(routing.sinkhorn(logits, num_iterations=50)))
    p = (a * d) ** 0.5 / ((a * d) ** 0.5 + (b * c) ** 0.5)
    np.testing.assert_allclose(plan, [[p, 1 - p], [1 - p, p]], rtol=1e-4)


def test_sinkhorn_balances_if_top_1_collapses(rng):
    """Most tokens prefer expert 0, but the plan gives each expert about 1/4."""
    logits = draw(rng, 64, 4) + np.array([3, 0, 0, 0], "float32")
    router = logit_router(SinkhornRouter(4), width=4)
    plain = to_numpy(router(logits).expert_index)
    assert (plain == 0).mean() > 0.8
    balanced = to_numpy(router(logits, training=True).expert_index)
    counts = np.bincount(balanced, minlength=4)
    assert counts.max() <= 1.5 * 16
    a = arrays(router(logits, training=True))
    wanted = softmax(logits)[np.arange(64), balanced]
    np.testing.assert_allclose(a.combine_weights, wanted, rtol=1e-4)


def test_sinkhorn_leaves_padding_and_absent_experts_out(rng):
    """The plan of the real tokens equals the plan without the padding."""
    logits = draw(rng, 12, 4)
    mask = np.arange(12) < 9
    available = np.array([True, False, True, True])
    plan = routing.sinkhorn(
        logits, routing.Conditions(ops.array(mask), ops.array(available))
    )
    wanted = routing.sinkhorn(logits[:9][:, [0, 2, 3]])
    plan = np.exp(to_numpy(plan))
    assert (plan[:, 1] == 0).all()
    np.testing.assert_allclose(
        plan[:9][:, [0, 2, 3]], np.exp(to_numpy(wanted)), rtol=1e-4
    )


def test_cosine_scores_the_angle():
    """Logits are cosines of 0, 90, and 45 degrees, divided by 0.5.

    The norms of tokens and embeddings do not matter (Chi et al. 2022, eq. 5).
    """
    router = CosineRouter(2, 1, routing_dim=2, temperature=0.5)
    router.build((None, 2))
    router.projection.assign(np.eye(2))
    router.kernel.assign([[5.0, 0.0], [0.0, 0.1]])
    logits = to_numpy(router(np.array([[7.0, 0], [2, 2]])).router_logits)
    half = 2 * 0.5**0.5
    np.testing.assert_allclose(logits, [[2, 0], [half, half]], atol=1e-5)


def test_cosine_temperature_is_learned_and_bounded():
    router = CosineRouter(2, temperature=0.3)
    router.build((None, 4))
    assert any(w is router.log_temperature for w in router.trainable_weights)
    start = np.exp(router.log_temperature.numpy())
    np.testing.assert_allclose(start, [0.3], rtol=1e-5)
    router.log_temperature.assign([-50.0])
    logits = to_numpy(router(np.ones((1, 4), "float32")).router_logits)
    assert np.abs(logits).max() <= 1 / 0.01 + 1e-3


@pytest.mark.every_backend
@pytest.mark.parametrize("causal", [False, True])
def test_attention_reads_the_context(rng, causal):
    """NumPy computes one attention head and one key per expert, by token."""
    router = AttentionRouter(4, routing_dim=5, causal=causal)
    router.build((None, None, D))
    x = draw(rng, 2, 6, D)
    mask = np.ones((2, 6), bool)
    mask[1, 4:] = False
    got = to_numpy(router(x, mask=mask).router_logits).reshape(2, 6, 4)
    q, k, v = (
        x @ getattr(router, f"{n}_kernel").numpy()
        for n in ("query", "key", "value")
    )
    for b, t in np.argwhere(mask):
        readable = mask[b] & (np.arange(6) <= t if causal else True)
        share = softmax(k[b][readable] @ q[b, t] / 5**0.5)
        context = share @ v[b][readable]
        wanted = (q[b, t] + context) @ router.kernel.numpy() / 5**0.5
        np.testing.assert_allclose(got[b, t], wanted, atol=1e-4)


def test_attention_of_tokens_without_neighbors(rng):
    router = AttentionRouter(4, routing_dim=5)
    router.build((None, D))
    x = draw(rng, 6, D)
    flat = to_numpy(router(x).router_logits)
    alone = to_numpy(router(x[:, None]).router_logits)
    np.testing.assert_allclose(flat, alone, atol=1e-5)
