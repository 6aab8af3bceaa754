"""Check that a disabled expert is absent.

A block of six experts, two of which are disabled, equals the block of the
other four in everything that it computes, adds, and keeps. T is the number of
tokens, D the hidden dimension, and E the number of experts.
"""

import keras
import numpy as np
import pytest
from absent_experts import (
    CASES,
    Case,
    T,
    assert_same_assignment,
    assert_same_step,
    blocks_of,
    close,
    fix_draws,
)
from backend import BACKEND, draw, to_numpy
from cases import cases
from keras import ops
from router_zoo import D, E, arrays

import keras_moe
from keras_moe import MoEBlock, losses, metrics, routing

# One whose experts choose, and one of any number of experts per token.
SOME = ("ExpertChoiceRouter", "TopPRouter")
every_router = pytest.mark.parametrize("name", cases(CASES, everywhere=SOME))


@every_router
def test_disabled_experts_are_absent(name, rng, monkeypatch):
    """Results agree in training (with capacity and losses) and evaluation."""
    case = Case(name)
    x, *given = case.inputs(rng)
    blocks = large, small = blocks_of(
        case,
        rng,
        **case.factors,
        load_balancing_weight=0.3,
        router_z_weight=0.2,
    )
    large.disable_experts(case.off)
    fix_draws(monkeypatch, case, rng)
    bias = getattr(case.large, "expert_bias_weight", None)
    before = None if bias is None else bias.numpy()[case.off]
    assert_same_step(case, blocks, x, given)
    if bias is not None:
        np.testing.assert_array_equal(bias.numpy()[case.off], before)
    found = [
        block(x, return_assignment=True, **options)
        for block, options in zip(blocks, given, strict=True)
    ]
    close(*(to_numpy(y) for y, _ in found))
    assert_same_assignment(case, *(a for _, a in found))


@every_router
def test_dropped_experts_are_absent_for_a_step(name, rng, monkeypatch):
    """`expert_dropout` acts with per-sequence losses and score priority."""
    case = Case(name, rate=0.5)
    x, *given = case.inputs(rng)
    blocks = blocks_of(
        case,
        rng,
        **case.factors,
        priority="score",
        load_balancing="per_sequence",
        load_balancing_weight=0.3,
        router_z_weight=0.2,
    )
    fix_draws(monkeypatch, case, rng)
    assert_same_step(case, blocks, x, given)


AVAILABLE = np.array([True, False, True, True, False, True])
ON = np.flatnonzero(AVAILABLE)


@pytest.mark.parametrize("over_replicas", [False, True])
def test_losses_of_the_experts_that_are_on(rng, over_replicas):
    """Each loss with `available` equals that of the available columns."""
    probs = np.where(AVAILABLE, rng.uniform(size=(T, E)), 0).astype("float32")
    logits, noise = draw(rng, T, E), draw(rng, T, E)
    mask = np.arange(T) < T - 3
    index = rng.integers(0, len(ON), 2 * T).astype("int32")
    names = ON[index].astype("int32")
    token = np.repeat(np.arange(T, dtype="int32"), 2)
    std = rng.uniform(0.5, 1, (T, E)).astype("float32")
    on = {"available": AVAILABLE}
    pairs = [
        losses.load_balancing_loss(p, i, mask, over_replicas, **option)
        for p, i, option in ((probs, names, on), (probs[:, ON], index, {}))
    ]
    pairs += [
        losses.sequence_balancing_loss(p, token, i, 2, mask, **option)
        for p, i, option in ((probs, names, on), (probs[:, ON], index, {}))
    ]
    for loss in (losses.router_z_loss, losses.importance_loss):
        values = probs if loss is losses.importance_loss else logits
        pairs += [loss(values, mask, **on), loss(values[:, ON], mask)]
    noisy = logits + noise * std
    pairs += [
        losses.load_loss(logits, noisy, std, 2, mask, **on),
        losses.load_loss(logits[:, ON], noisy[:, ON], std[:, ON], 2, mask),
    ]
    found = np.array([to_numpy(value) for value in pairs]).reshape(-1, 2)
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-5)
    assert (found > 0).all()


def test_metrics_of_the_experts_that_are_on(rng):
    """The enabled experts have loads 3, 1, 2, 2: 3 divided by a mean of 2."""
    load = np.array([3.0, 0, 1, 2, 0, 2]) / 8
    found = metrics.load_imbalance(load, AVAILABLE)
    assert to_numpy(found) == pytest.approx(1.5)
    none_on = np.zeros(E, bool)
    assert to_numpy(metrics.load_imbalance(load, none_on)) == 0
    probs = np.where(AVAILABLE, rng.uniform(size=(T, E)), 0).astype("float32")
    np.testing.assert_allclose(
        to_numpy(metrics.router_entropy(probs)),
        to_numpy(metrics.router_entropy(probs[:, ON])),
        rtol=1e-5,
    )
    names = rng.integers(0, len(ON), 30)
    np.testing.assert_allclose(
        to_numpy(metrics.expert_load(ON[names].astype("int32"), E))[ON],
        to_numpy(metrics.expert_load(names.astype("int32"), len(ON))),
    )


# --- groups that are partly disabled ----------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype("float64")))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_group_of_which_one_expert_is_off(rng, scoring):
    """A group scores by its best enabled experts, computed in float64.

    A token gets the best enabled experts of its groups.
    """
    logits = draw(rng, 200, 6)
    available = np.array([False, True, True, True, True, True])
    bias = rng.normal(size=6).astype("float32") * 0.2
    scores = sigmoid(logits)
    if scoring == "softmax":
        scores = np.where(available, np.exp(logits.astype("float64")), 0)
        scores /= scores.sum(1, keepdims=True)
    ranked = np.where(available, scores + bias, -np.inf)
    best = np.sort(ranked.reshape(-1, 3, 2))[..., ::-1]
    best = np.where(np.isfinite(best), best, 0)
    of_group = best.sum(-1) if scoring == "sigmoid" else best[..., 0]
    kept = np.argsort(-of_group, axis=1)[:, :2]
    in_group = (np.arange(6) // 2 == kept[..., None]).any(1)
    wanted = np.argsort(-np.where(in_group, ranked, -np.inf), axis=1)[:, :2]
    a = arrays(
        routing.top_k_assignment(
            logits,
            2,
            scoring,
            conditions=routing.Conditions(available=available),
            expert_bias=ops.convert_to_tensor(bias),
            num_groups=3,
            top_k_groups=2,
        )
    )
    np.testing.assert_array_equal(a.expert_index.reshape(-1, 2), wanted)
    assert (in_group[:, 1]).any()  # the expert beside the disabled one


@pytest.mark.one_backend
def test_groups_with_too_few_experts_give_a_token_fewer():
    """The best group has one enabled expert, which is the token's only one.

    Experts 0 and 1 are enabled, but in the group that is not chosen.
    """
    logits = np.array([[0.0, 0.1, 5, 5]], "float32")
    available = np.array([True, True, True, False])
    a = arrays(
        routing.top_k_assignment(
            logits,
            2,
            conditions=routing.Conditions(available=available),
            num_groups=2,
        )
    )
    np.testing.assert_array_equal(a.expert_index, [2, 4])
    np.testing.assert_allclose(a.combine_weights, [1, 0])


@pytest.mark.one_backend
def test_probabilities_of_a_hierarchy_of_which_a_part_is_off(rng):
    """Enabled experts share their group's probability, computed in float64.

    The softmax of the logits equals the probabilities.
    """
    groups, experts = draw(rng, 9, 3), draw(rng, 9, 6)
    available = np.array([False, True, True, True, False, False])
    a = arrays(
        routing.hierarchical_assignment(
            groups,
            experts,
            2,
            2,
            conditions=routing.Conditions(available=available),
        )
    )
    of_group = np.exp(groups.astype("float64"))[:, :2]
    of_group /= of_group.sum(1, keepdims=True)
    in_group = np.where(available, np.exp(experts.astype("float64")), 0)
    in_group = in_group.reshape(9, 3, 2)[:, :2]
    in_group /= in_group.sum(-1, keepdims=True)
    wanted = (of_group[..., None] * in_group).reshape(9, 4)
    close(a.router_probs[:, :4], wanted)
    np.testing.assert_array_equal(a.router_probs[:, 4:], 0)
    close(
        np.exp(a.router_logits) / np.exp(a.router_logits).sum(1)[:, None],
        a.router_probs,
    )


def test_a_token_without_a_positive_gate_has_probabilities_of_the_others():
    """If all gates are zero, enabled experts have equal probabilities."""
    logits = np.full((1, 4), -200.0, "float32")
    conditions = routing.Conditions(
        available=np.array([True, False, True, False])
    )
    one = ops.ones((1,))
    for a in (
        routing.relu_assignment(logits, 4, 1, one, conditions),
        routing.top_k_assignment(logits, 1, "sigmoid", conditions=conditions),
    ):
        np.testing.assert_allclose(
            to_numpy(a.router_probs), [[0.5, 0, 0.5, 0]], rtol=1e-6
        )


# --- biases and controllers over many steps ---------------------------------


def test_an_expert_that_was_off_comes_back_with_its_bias(rng):
    """A disabled expert keeps its bias while the others are balanced.

    Once enabled, after 30 steps, the expert gets fewer than half of the tokens.
    """
    x = draw(rng, 400, D)
    router = keras_moe.Router(4, 1, expert_bias=True, expert_bias_step=0.01)
    router(x)
    router.expert_bias_weight.assign([0.0, 0.02, 0.0, 0.0])
    router.disable_experts([1])
    for _ in range(30):
        router(x, training=True)
    assert to_numpy(router.expert_bias_weight)[1] == np.float32(0.02)
    router.enable_experts()
    load = np.bincount(arrays(router(x)).expert_index, minlength=4)
    assert load[1] < 200


@pytest.mark.one_backend
@pytest.mark.parametrize("num_experts", [3, 6, 7, 49, 253])
def test_an_even_load_moves_no_bias(num_experts):
    """Loads are compared as integers, because a float mean may be inexact."""
    bias = ops.zeros((num_experts,))
    for each in (1, 37, 1013):
        index = np.tile(np.arange(num_experts, dtype="int32"), each)
        moved = routing.balanced_bias(bias, index, num_experts, 0.5)
        np.testing.assert_array_equal(to_numpy(moved), 0)


def test_a_mean_load_that_is_no_integer():
    """Three pairs have a mean load of 1, and four pairs of 4/3.

    Three experts are enabled. With four pairs, a load of 2 is above the mean,
    and a load of 1 is below.
    """
    available = np.array([True, True, True, False])
    zeros = ops.zeros((4,))
    for index, wanted in (
        ([0, 0, 1], [-1, 0, 1, 0]),
        ([0, 0, 1, 2], [-1, 1, 1, 0]),
    ):
        moved = routing.balanced_bias(
            zeros, np.array(index, "int32"), 4, 1.0, available
        )
        np.testing.assert_array_equal(to_numpy(moved), wanted)


# --- programs ---------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
def test_expert_choice_of_those_that_are_on_in_a_program(rng, jit_compile):
    """The outputs are the tokens times the weights that NumPy computes.

    For 12 tokens and c = 1, each of three enabled experts has C = 12 / 3. If
    shapes are fixed before the values are known, C = 12 / 4.
    """
    router = keras_moe.ExpertChoiceRouter(4, 1.0, bidirectional=True)
    inputs = keras.Input((D,))
    experts = [keras.layers.Identity() for _ in range(4)]
    block = MoEBlock(4, router=router, experts=experts)
    model = keras.Model(inputs, block(inputs))
    model.compile(jit_compile=jit_compile and BACKEND != "torch")
    block.disable_experts([2])
    x = draw(rng, 12, D)
    fixed = BACKEND == "jax" or (BACKEND == "tensorflow" and jit_compile)
    places = 3 if fixed else 4
    logits = x.astype("float64") @ router.kernel.numpy()
    probs = np.exp(logits) * [1, 1, 0, 1]
    probs /= probs.sum(1, keepdims=True)
    weights = np.zeros((12, 4))
    for e in (0, 1, 3):
        best = np.argsort(-probs[:, e])[:places]
        weights[best, e] = probs[best, e]
    wanted = weights.sum(1, keepdims=True) * x
    close(model.predict(x, verbose=0, batch_size=12), wanted)


@pytest.mark.one_backend
def test_the_capacity_of_layers_of_any_kind():
    """Eight tokens go to one of three enabled experts, so C = ceil(8 / 3).

    On JAX, a layer runs on a fixed number of rows, and C = 8 / 4.
    """
    experts = [keras.layers.Dense(D) for _ in range(4)]
    block = MoEBlock(
        4,
        router=keras_moe.RuleRouter(4),
        experts=experts,
        eval_capacity_factor=1.0,
    )
    x, ids = np.ones((8, D), "float32"), np.zeros(8, "int32")
    block(x, router_inputs=ids)
    block.disable_experts([2])
    _, a = block(x, router_inputs=ids, return_assignment=True)
    kept = (to_numpy(a.expert_index) == 0).sum()
    assert kept == (2 if BACKEND == "jax" else 3)
