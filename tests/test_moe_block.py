"""The block: what it computes, what it ignores, what it reports."""

import keras
import numpy as np
import pytest
from backend import layer_gradients, to_numpy
from keras import ops

from keras_moe import Expert, MoEBlock, Router


def draw(rng, *shape):
    return rng.normal(size=shape).astype("float32")


def expert_outputs(block, x):
    """Every expert on every row, (E, rows, D), each as a dense Expert."""
    outputs = []
    for e in range(block.num_experts):
        own = Expert(
            block.experts.intermediate_dim,
            activation=block.experts.activation,
            gated=block.experts.gated,
            use_bias=block.experts.use_bias,
        )
        own.build((None, x.shape[-1]))
        for mine, stacked in zip(
            own.trainable_variables,
            block.experts.trainable_variables,
            strict=True,
        ):
            mine.assign(to_numpy(stacked)[e : e + 1])
        outputs.append(to_numpy(own(x)))
    return np.stack(outputs)


def test_one_expert_is_the_dense_network_with_the_same_weights(rng):
    x = draw(rng, 4, 5, 6)
    block = MoEBlock(1, 10, top_k=1, activation="gelu", gated=True)
    y, gradients = layer_gradients(block, x)
    dense = Expert(10, activation="gelu", gated=True)
    dense.build((None, 6))
    dense.set_weights(block.experts.get_weights())
    wanted, wanted_gradients = layer_gradients(dense, x)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    for name, gradient in wanted_gradients.items():
        got = next(g for n, g in gradients.items() if n.endswith(name))
        np.testing.assert_allclose(got, gradient, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_all_experts_are_the_explicit_mixture(rng, gated):
    """K = E: the sum of every expert's output by its softmax weight."""
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, top_k=4, gated=gated)
    y = to_numpy(block(x))
    logits = x @ to_numpy(block.router.kernel)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixture = np.einsum("te,etd->td", weights, expert_outputs(block, x))
    np.testing.assert_allclose(y, mixture, atol=1e-5)


def test_top_1_weighs_by_the_probability(rng):
    """Fedus et al. 2021, eq. 2: y = p_i(x) E_i(x), so the router learns."""
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, top_k=1)
    y, assignment = block(x, return_assignment=True)
    probs = to_numpy(assignment.router_probs)
    best = probs.argmax(-1)
    chosen = expert_outputs(block, x)[best, np.arange(7)]
    wanted = probs.max(-1, keepdims=True) * chosen
    np.testing.assert_allclose(to_numpy(y), wanted, atol=1e-5)
    _, gradients = layer_gradients(block, x)
    assert np.abs(gradients["router/kernel"]).max() > 1e-3


def test_shared_expert_sees_every_token(rng):
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, shared_expert_dim=3, gated=True, activation="silu")
    both = to_numpy(block(x))
    shared = to_numpy(block.shared_expert(x))
    assert block.shared_expert.gated
    assert block.shared_expert.up_kernel.shape == (1, 6, 3)
    routed = MoEBlock(4, 10, gated=True, activation="silu")
    routed(x)
    routed.router.set_weights(block.router.get_weights())
    routed.experts.set_weights(block.experts.get_weights())
    np.testing.assert_allclose(both, to_numpy(routed(x)) + shared, atol=1e-5)


@pytest.mark.parametrize("seed", [None, 3])
def test_shared_expert_does_not_start_as_a_routed_one(seed):
    initializer = keras.initializers.GlorotUniform(seed=seed)
    block = MoEBlock(
        2, 10, shared_expert_dim=10, kernel_initializer=initializer
    )
    block.build((None, 6))
    shared = to_numpy(block.shared_expert.up_kernel)
    assert (to_numpy(block.experts.up_kernel) != shared).all()


def test_dropless_outputs_do_not_depend_on_the_other_tokens(rng):
    x = draw(rng, 40, 6)
    block = MoEBlock(8, 10, top_k=2)
    y = to_numpy(block(x))
    order = rng.permutation(40)
    np.testing.assert_allclose(to_numpy(block(x[order])), y[order], atol=1e-6)
    np.testing.assert_allclose(to_numpy(block(x[:9])), y[:9], atol=1e-6)
    crowd = np.concatenate([x[:1], np.repeat(x[1:2], 30, axis=0)])
    np.testing.assert_allclose(to_numpy(block(crowd))[0], y[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_inputs_of_any_rank(rng, shape):
    x = draw(rng, 4, *shape)
    block = MoEBlock(3, 10)
    y = to_numpy(block(x))
    assert y.shape == x.shape
    flat = to_numpy(block(x.reshape(-1, 6)))
    np.testing.assert_allclose(y.reshape(-1, 6), flat, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 6), (0, 3, 6), (2, 0, 6)])
def test_no_tokens(shape, training):
    block = MoEBlock(
        3, 10, capacity_factor=1.0, shared_expert_dim=4, router_z_weight=0.1
    )
    y = block(np.zeros(shape, "float32"), training=training)
    assert tuple(y.shape) == shape
    assert all(float(to_numpy(loss)) == 0 for loss in block.losses)
    np.testing.assert_array_equal(to_numpy(block.expert_load), np.zeros(3))


def test_nan_in_one_token_reaches_no_other(rng):
    x = draw(rng, 20, 6)
    block = MoEBlock(4, 10, shared_expert_dim=5)
    y = to_numpy(block(x))
    poisoned = x.copy()
    poisoned[7] = np.nan
    got = to_numpy(block(poisoned))
    assert np.isnan(got[7]).any()
    np.testing.assert_allclose(
        np.delete(got, 7, axis=0), np.delete(y, 7, axis=0), atol=1e-6
    )


# --- padding ----------------------------------------------------------------


def padded_block():
    return MoEBlock(
        4,
        10,
        capacity_factor=0.5,
        shared_expert_dim=5,
        load_balancing_weight=1.0,
        router_z_weight=0.1,
    )


@pytest.mark.parametrize("priority", ["position", "score"])
@pytest.mark.parametrize("content", [100.0, np.nan])
def test_what_stands_in_padding_changes_nothing(rng, priority, content):
    x = draw(rng, 3, 8, 6)
    mask = np.arange(8) < np.array([[5], [8], [1]])
    poisoned = np.where(mask[..., None], x, content).astype("float32")
    results = []
    for inputs in (x, poisoned):
        keras.utils.set_random_seed(1)
        block = padded_block()
        block.priority = priority
        y = to_numpy(block(inputs, mask=mask, training=True))
        losses = [to_numpy(loss) for loss in block.losses]
        load = to_numpy(block.expert_load)
        dropped = to_numpy(block.fraction_dropped)
        _, gradients = layer_gradients(block, inputs, training=True, mask=mask)
        results.append([y, *losses, load, dropped, *gradients.values()])
    assert len(results[0][1:3]) == 2 and results[0][4].sum() > 0
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(results[1][0][~mask], 0)


def test_padding_behaves_as_if_it_were_not_there(rng):
    """Values, losses and load of a padded batch are those of its tokens."""
    x = draw(rng, 3, 8, 6)
    mask = np.arange(8) < np.array([[5], [8], [1]])
    block = MoEBlock(4, 10, load_balancing_weight=1.0, router_z_weight=1.0)
    padded = to_numpy(block(x, mask=mask, training=True))[mask]
    losses = [to_numpy(loss) for loss in block.losses]
    load = to_numpy(block.expert_load)
    block.reset_statistics()
    alone = to_numpy(block(x[mask], training=True))
    np.testing.assert_allclose(padded, alone, atol=1e-6)
    np.testing.assert_allclose(
        losses, [to_numpy(loss) for loss in block.losses], rtol=1e-5
    )
    np.testing.assert_allclose(load, to_numpy(block.expert_load), rtol=1e-6)


def test_keras_masks_are_honoured_and_passed_on(rng):
    ids = np.array([[3, 4, 0, 0], [1, 2, 5, 0]])
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, 6, mask_zero=True)(inputs)
    block = MoEBlock(4, 10)
    model = keras.Model(inputs, [block(x), keras.layers.LSTM(3)(block(x))])
    y, state = model(ids)
    assert (to_numpy(y)[ids == 0] == 0).all()
    assert (to_numpy(y)[ids != 0] != 0).any(axis=-1).all()
    shorter = to_numpy(model(ids[:, :3])[1])
    np.testing.assert_allclose(to_numpy(state), shorter, atol=1e-6)


# --- capacity, losses, statistics -------------------------------------------


def sorted_by_hand(**options):
    """A block of two experts: tokens above 0 go to the first, K = 1."""
    block = MoEBlock(2, 4, top_k=1, **options)
    block.build((None, 2))
    block.router.kernel.assign([[1.0, -1.0], [0.0, 0.0]])
    return block


CROWDED = np.array([[3, 1], [1, 1], [2, 1], [-1, 1]], "float32")


@pytest.mark.parametrize(
    "priority, dropped", [("position", [2]), ("score", [1])]
)
def test_capacity_in_training(priority, dropped):
    """C = 1 * 4 * 1.0 / 2 = 2 of the three tokens that want expert 0."""
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
    """By hand: p(expert 0) = s(2 x), f = (3/4, 1/4), logits (x, -x)."""
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
    """Loads (3/4, 1/4) and (0, 1), nothing from evaluation or padding."""
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


# --- configuration ----------------------------------------------------------


def test_configured_router_and_experts_are_used(rng):
    router = Router(4, top_k=3, scoring="sigmoid")
    experts = Expert(10, 4, gated=True, use_bias=False)
    block = MoEBlock(4, router=router, experts=experts, shared_expert_dim=2)
    block(draw(rng, 5, 6))
    assert block.router is router
    assert block.experts is experts
    assert block.shared_expert.gated and not block.shared_expert.use_bias
    again = MoEBlock.from_config(block.get_config())
    assert again.router.scoring == "sigmoid"
    assert again.router.top_k == 3
    assert again.experts.gated
    assert again.get_config() == block.get_config()


def test_the_wrapped_class_serialises_plain_arguments():
    config = MoEBlock(
        4, 10, top_k=3, activation="silu", jitter=0.1
    ).get_config()
    assert config["top_k"] == 3
    assert config["intermediate_dim"] == 10
    assert config["activation"] == "silu"
    assert config["jitter"] == 0.1
    assert "router" not in config


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"num_experts": 0, "intermediate_dim": 8}, "num_experts"),
        ({"num_experts": 4, "intermediate_dim": 0}, "intermediate_dim"),
        ({"intermediate_dim": None}, "intermediate_dim"),
        ({"top_k": 5}, "top_k"),
        ({"top_k": 0}, "top_k"),
        ({"capacity_factor": 0}, "capacity_factor"),
        ({"capacity_factor": -1.0}, "capacity_factor"),
        ({"capacity_factor": float("nan")}, "capacity_factor"),
        ({"eval_capacity_factor": 0.0}, "eval_capacity_factor"),
        ({"priority": "random"}, "priority"),
        ({"activation": "rilu"}, "activation"),
        ({"shared_expert_dim": 0}, "shared_expert_dim"),
        ({"load_balancing_weight": -0.1}, "load_balancing_weight"),
        ({"router_z_weight": float("inf")}, "router_z_weight"),
        ({"jitter": 2.0}, "jitter"),
        ({"dropout": -0.1}, "dropout"),
        ({"router": Router(5)}, "router"),
        ({"intermediate_dim": None, "experts": Expert(8, 5)}, "experts"),
        ({"router": Router(4), "top_k": 1}, "top_k"),
        ({"router": Router(4), "jitter": 0.1}, "jitter"),
        ({"experts": Expert(9, 4)}, "intermediate_dim"),
        (
            {
                "intermediate_dim": None,
                "experts": Expert(8, 4),
                "activation": "silu",
            },
            "activation",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, name):
    arguments = {"num_experts": 4, "intermediate_dim": 8, **arguments}
    with pytest.raises(
        ValueError, match=rf"`{name}` must .*Received: .*{name}"
    ):
        MoEBlock(**arguments)


@pytest.mark.parametrize(
    "inputs, options, name",
    [
        (np.zeros(6, "float32"), {}, "inputs"),
        (np.zeros((3, 6), "int32"), {}, "inputs"),
        (np.zeros((3, 7), "float32"), {}, "inputs"),
        (np.zeros((3, 6), "float32"), {"mask": np.ones(2, bool)}, "mask"),
        (np.zeros((3, 2, 6), "float32"), {"mask": np.ones(3, bool)}, "mask"),
    ],
    ids=["rank", "integers", "width", "mask length", "mask rank"],
)
def test_bad_inputs(inputs, options, name):
    block = MoEBlock(4, 8)
    if inputs.ndim > 1:
        block.build((None, 6))
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        block(ops.convert_to_tensor(inputs), **options)


def test_symbolic_bad_inputs():
    with pytest.raises(ValueError, match="known last dimension"):
        MoEBlock(4, 8)(keras.Input((5, None)))
    with pytest.raises(ValueError, match="floating-point"):
        MoEBlock(4, 8)(keras.Input((5, 6), dtype="int32"))
