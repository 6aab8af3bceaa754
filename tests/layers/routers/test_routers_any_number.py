"""Check routers with any number of experts per token by hand."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from keras import ops
from router_zoo import arrays

from keras_moe import (
    ExpertChoiceRouter,
    MoEBlock,
    ReLURouter,
    routing,
)
from keras_moe.routing import Conditions

LOGITS = np.log(
    [[5.0, 3.0, 2.0], [1.0, 8.0, 1.0], [2.0, 2.0, 6.0], [4.0, 5.0, 1.0]]
).astype("float32")  # rows of probabilities in tenths


# --- experts choose ---------------------------------------------------------


def test_expert_choice_by_hand():
    """Each expert chooses two tokens (Zhou et al. 2022, eq. 2-3).

    The columns are (.5 .1 .2 .4), (.3 .8 .2 .5), and (.2 .1 .6 .1). Token 2 is
    chosen once and token 0 twice.
    """
    a = arrays(routing.expert_choice_assignment(LOGITS, 2))
    np.testing.assert_array_equal(a.token_index, [0, 3, 1, 3, 2, 0])
    np.testing.assert_array_equal(a.expert_index, [0, 0, 1, 1, 2, 2])
    np.testing.assert_allclose(
        a.combine_weights, [0.5, 0.4, 0.8, 0.5, 0.6, 0.2], rtol=1e-5
    )


@pytest.mark.parametrize(
    "x, chosen, weights",
    [
        (
            [[2, 1, 0], [1, 1, 0], [0, 0, 0]],
            [[0, 1], [1, 2], [1, 2]],
            [[0.66, 0, 0], [0.42, 0.42, 0.16], [0, 0.33, 0.33]],
        ),
        (
            [[0, 0, 0], [0, 1, 1], [0, 1, 2]],
            [[0, 1], [0, 1], [1, 2]],
            [[0.33, 0.33, 0], [0.16, 0.42, 0.42], [0, 0, 0.66]],
        ),
    ],
)
def test_expert_choice_as_the_model_garden_derives_it(x, chosen, weights):
    """The tokens and weights are those of TensorFlow's model garden.

    The test of `ExpertsChooseMaskedRouter` has three tokens, three experts,
    C = 2, and logits x + 1, and lists each expert's tokens and, to two digits,
    each token's weights.
    """
    logits = np.array(x, "float32") + 1
    a = arrays(routing.expert_choice_assignment(logits, 2))
    tokens = np.sort(a.token_index.reshape(3, 2), axis=1)
    np.testing.assert_array_equal(tokens, chosen)
    table = np.zeros((3, 3))
    table[a.token_index, a.expert_index] = a.combine_weights
    np.testing.assert_allclose(table, weights, atol=0.01)


def test_expert_choice_never_takes_padding():
    """If token 3 is padding, expert 0 chooses tokens 0 and 2.

    With a capacity of all 4 tokens, the fourth place of each expert is empty.
    """
    mask = ops.array([True, True, True, False])
    a = arrays(routing.expert_choice_assignment(LOGITS, 2, Conditions(mask)))
    np.testing.assert_array_equal(a.token_index[:2], [0, 2])
    a = arrays(routing.expert_choice_assignment(LOGITS, 9, Conditions(mask)))
    assert a.expert_index.shape == (12,)
    computed = a.expert_index.reshape(3, 4) < 3
    np.testing.assert_array_equal(computed.sum(1), [3, 3, 3])
    assert (a.token_index[a.expert_index < 3] < 3).all()


@pytest.mark.parametrize("mean, capacity", [(2.0, 3), (0.5, 1), (1.1, 2)])
def test_expert_choice_capacity(rng, mean, capacity):
    """C = ceil(c * 6 / 4) is ceil(3), ceil(0.75), and ceil(1.65)."""
    router = ExpertChoiceRouter(4, mean, bidirectional=True)
    a = arrays(router(draw(rng, 6, 5)))
    np.testing.assert_array_equal(np.bincount(a.expert_index), [capacity] * 4)


def test_expert_choice_in_a_block_is_the_sum_over_its_experts(rng):
    """A token's output is the weighted sum of the experts that chose it."""
    router = ExpertChoiceRouter(3, 2.0, bidirectional=True)
    block = MoEBlock(3, 7, router=router, use_bias=False)
    x = draw(rng, 5, 4)
    y, a = block(x, return_assignment=True)
    a = arrays(a)
    up, down = (
        w.numpy() for w in (block.experts.up_kernel, block.experts.down_kernel)
    )
    wanted = np.zeros((5, 4))
    for token, e, weight in zip(
        a.token_index, a.expert_index, a.combine_weights, strict=True
    ):
        wanted[token] += weight * (np.maximum(x[token] @ up[e], 0) @ down[e])
    np.testing.assert_allclose(to_numpy(y), wanted, atol=1e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_expert_choice_of_any_batch(rng, policy):
    """C depends on the batch: a model trained on 8 rows predicts 3 and 1."""
    keras.config.set_dtype_policy(policy)
    router = ExpertChoiceRouter(4, bidirectional=True)
    inputs = keras.Input((None, 6))
    outputs = MoEBlock(4, 8, router=router)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(outputs))
    model.compile("sgd", "mse")
    x = draw(rng, 8, 5, 6)
    model.fit(x, x[..., :1], verbose=0)
    for some in (x[:3], x[:1, :2]):
        y = model.predict(some, verbose=0)
        np.testing.assert_allclose(y, to_numpy(model(some)), atol=0.02)


def test_expert_choice_warns_of_the_future():
    with pytest.warns(UserWarning, match="do not use it in a causal model"):
        router = ExpertChoiceRouter(3)
    assert "Not causal" in ExpertChoiceRouter.__doc__
    # Loading and cloning do not warn; a warning would be an error here.
    again = ExpertChoiceRouter.from_config(router.get_config())
    inputs = keras.Input((5, 6))
    model = keras.Model(inputs, MoEBlock(3, 4, router=again)(inputs))
    keras.models.clone_model(model)


# --- as many experts as needed ----------------------------------------------


def test_top_p_by_hand():
    """With p = 0.59 and K = 2, tokens keep (.5 .3), (.8), (.6), (.5 .4)."""
    a = arrays(routing.top_p_assignment(LOGITS, 0.59, 2))
    np.testing.assert_array_equal(a.expert_index, [0, 1, 1, 3, 2, 3, 1, 0])
    np.testing.assert_allclose(
        a.combine_weights, [0.5, 0.3, 0.8, 0, 0.6, 0, 0.5, 0.4], rtol=1e-5
    )
    a = arrays(routing.top_p_assignment(LOGITS, 0.59, 2, True))
    np.testing.assert_allclose(
        a.combine_weights, [5 / 8, 3 / 8, 1, 0, 1, 0, 5 / 9, 4 / 9], rtol=1e-5
    )


def test_top_p_takes_k_at_most():
    a = arrays(routing.top_p_assignment(LOGITS, 1.0, 2))
    assert (a.expert_index < 3).all()
    assert a.expert_index.shape == (8,)


def test_top_p_entropy_loss_by_hand():
    """The entropies are 1.0297 for (.5 .3 .2) and 0.6390 for (.1 .8 .1)."""
    mask = ops.array([True, True, False, False])
    a = routing.top_p_assignment(
        LOGITS, 0.5, 2, entropy_weight=0.1, conditions=Conditions(mask)
    )
    wanted = 0.1 * (1.0296530 + 0.6390319) / 2
    assert to_numpy(a.router_loss) == pytest.approx(wanted, rel=1e-5)


RELU_LOGITS = np.array([[2.0, -1, 0.5], [-1, -1, -1], [1, 3, 0]], "float32")


def test_relu_by_hand():
    """The weights are (2, .5), none, and (3, 1) (Wang et al. 2024, eq. 6)."""
    one = ops.ones((1,))
    a = arrays(routing.relu_assignment(RELU_LOGITS, 2, 1, one))
    np.testing.assert_array_equal(a.expert_index, [0, 2, 3, 3, 1, 0])
    np.testing.assert_allclose(a.combine_weights, [2, 0.5, 0, 0, 3, 1])


def test_relu_loss_by_hand():
    """The loss is the mean over tokens of sum_e f_e * gate (eq. 10-11).

    With K = 1, f_e = E / (K T) * active = (2, 1, 1), and the mean over T = 3
    tokens is (2 * 2 + .5 + 2 * 1 + 3) / 3.
    """
    a = routing.relu_assignment(RELU_LOGITS, 3, 1, ops.array([0.1]))
    wanted = 0.1 * (2 * 2 + 0.5 + 2 * 1 + 3) / 3
    assert to_numpy(a.router_loss) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("top_k, factor", [(1, 1.2), (2, 1 / 1.2)])
def test_relu_controller_by_hand(top_k, factor):
    """Four active pairs of three tokens lie between 1 and 2 per token."""
    now = ops.array([0.01])
    after = routing.next_l1_coefficient(now, RELU_LOGITS, top_k, 1.2)
    np.testing.assert_allclose(to_numpy(after), [0.01 * factor], rtol=1e-5)


def test_relu_controller_holds_the_number_of_experts(rng):
    """After training on noise, about K of the 8 experts are active."""
    router = ReLURouter(8, 2, l1_start=0.01 / 8, l1_growth=1.1)
    block = MoEBlock(8, 8, router=router)
    inputs = keras.Input((16,))
    model = keras.Model(inputs, block(inputs))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = draw(rng, 256, 16), draw(rng, 256, 16)
    active = (to_numpy(router(x).expert_index) < 8).mean() * 8
    assert active > 3  # half of them
    model.fit(x, y, batch_size=64, epochs=60, verbose=0)
    active = (to_numpy(router(x).expert_index) < 8).mean() * 8
    assert 1.5 < active < 2.5
