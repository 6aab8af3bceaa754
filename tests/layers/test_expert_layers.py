"""Test experts of any kind: `ExpertLayers`, and blocks that contain it."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import layers, ops

from keras_moe import Expert, ExpertLayers, MoEBlock, Router, RuleRouter

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

WIDTH = 4


def three_kinds():
    return [
        layers.Conv1D(WIDTH, 3, padding="same"),
        layers.LSTM(WIDTH, return_sequences=True),
        layers.Identity(),
    ]


def test_each_expert_gets_its_own_rows(rng):
    bank = ExpertLayers([layers.Dense(WIDTH), layers.Identity()])
    bank.build((None, WIDTH))
    x = draw(rng, 5, WIDTH)
    y = bank(x, group_sizes=ops.convert_to_tensor([2, 2], "int32"))
    kernel = to_numpy(bank.layers[0].kernel)
    by_hand = np.concatenate([x[:2] @ kernel, x[2:4], np.zeros((1, WIDTH))])
    np.testing.assert_allclose(to_numpy(y), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [False, True])
def test_an_example_goes_whole_to_the_expert_of_its_rule(mask, rng):
    """A convolution, an LSTM, and an identity get their own sequences."""
    block = MoEBlock(
        3,
        top_k=2,
        router=RuleRouter(3),
        experts=three_kinds(),
        level="example",
    )
    x, ids = draw(rng, 6, 5, WIDTH), np.array([0, 1, 2, 2, 0, 1])
    valid = None
    if mask:
        valid = np.arange(5) < np.array([5, 3, 4, 5, 2, 1])[:, None]
        x = np.where(valid[..., None], x, 0).astype("float32")
    y = to_numpy(block(x, mask=valid, router_inputs=ids))
    for e, expert in enumerate(block.experts.layers):
        options = {"mask": valid[ids == e]} if mask and e == 1 else {}
        own = to_numpy(expert(x[ids == e], **options))
        if mask:
            own = np.where(valid[ids == e][..., None], own, 0)
        np.testing.assert_allclose(y[ids == e], own, rtol=1e-5, atol=1e-6)


def test_the_router_reads_an_examples_mean_token(rng):
    block = MoEBlock(2, 3, top_k=1, level="example")
    x = draw(rng, 4, 5, WIDTH)
    valid = np.arange(5) < np.array([5, 3, 1, 0])[:, None]
    _, assignment = block(x, mask=valid, return_assignment=True)
    total = (x * valid[..., None]).sum(1)
    mean = total / np.maximum(valid.sum(1), 1)[:, None]
    logits = mean @ to_numpy(block.router.kernel)
    np.testing.assert_allclose(
        to_numpy(assignment.router_logits), logits, rtol=1e-4, atol=1e-6
    )
    index = to_numpy(assignment.expert_index)
    np.testing.assert_array_equal(index[:3], logits[:3].argmax(1))
    assert index[3] == 2  # padding goes nowhere


def test_a_bank_of_networks_routes_examples_as_well(rng):
    """With `level="example"`, each token goes to its example's expert."""
    by_example = MoEBlock(3, 6, router=RuleRouter(3), level="example")
    by_token = MoEBlock(3, 6, router=RuleRouter(3), experts=Expert(6, 3))
    x, ids = draw(rng, 4, 5, WIDTH), np.array([2, 0, 0, 1])
    by_example.build(x.shape)
    by_token.build(x.shape)
    by_token.experts.set_weights(by_example.experts.get_weights())
    np.testing.assert_allclose(
        to_numpy(by_example(x, router_inputs=ids)),
        to_numpy(by_token(x, router_inputs=ids)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_an_expert_adds_and_assigns_in_training_is_kept(rng):
    """Only experts with rows move their statistics, and losses count once."""
    norm = layers.BatchNormalization(momentum=0.5)
    idle = layers.BatchNormalization()
    bank = ExpertLayers(
        [
            keras.Sequential([layers.ActivityRegularization(l2=1.0), norm]),
            keras.Sequential([idle]),
        ]
    )
    bank.build((None, WIDTH))
    x = draw(rng, 8, WIDTH)
    sizes = ops.convert_to_tensor([8, 0], "int32")
    bank(x, group_sizes=sizes, training=True)
    np.testing.assert_allclose(
        to_numpy(norm.moving_mean), 0.5 * x.mean(0), rtol=1e-4, atol=1e-6
    )
    assert not to_numpy(idle.moving_mean).any()
    # Keras divides an activity loss by the batch size.
    losses = [float(to_numpy(loss)) for loss in bank.losses]
    np.testing.assert_allclose(sum(losses), (x**2).sum() / 8, rtol=1e-4)


@pytest.mark.every_backend
def test_dropout_draws_anew_in_each_training_step(rng):
    bank = ExpertLayers([layers.Dropout(0.5), layers.Dropout(0.5)])
    bank.build((None, 50))
    x, sizes = np.ones((4, 50), "float32"), ops.convert_to_tensor([2, 2])
    draws = [
        to_numpy(bank(x, group_sizes=sizes, training=True)) for _ in range(2)
    ]
    assert (draws[0] != draws[1]).any()
    np.testing.assert_array_equal(to_numpy(bank(x, group_sizes=sizes)), x)


def test_a_frozen_expert_does_not_change(rng):
    experts = [layers.Dense(WIDTH), layers.Dense(WIDTH, trainable=False)]
    model = keras.Sequential([MoEBlock(2, top_k=2, experts=experts)])
    x = draw(rng, 16, WIDTH)
    model.build(x.shape)
    before = [to_numpy(e.kernel) for e in experts]
    model.compile("sgd", "mse")
    model.fit(x, 0 * x, verbose=0)
    assert (to_numpy(experts[0].kernel) != before[0]).any()
    np.testing.assert_array_equal(to_numpy(experts[1].kernel), before[1])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA on TensorFlow")
def test_under_xla_too(rng):
    import tensorflow as tf

    block = MoEBlock(3, experts=three_kinds(), level="example", top_k=1)
    x = draw(rng, 6, 5, WIDTH)
    y = to_numpy(block(x))
    compiled = tf.function(block, jit_compile=True)
    np.testing.assert_allclose(to_numpy(compiled(x)), y, atol=1e-5)


BAD = {
    "no list": (lambda: ExpertLayers(layers.Dense(2)), "must be a list"),
    "no layers": (lambda: ExpertLayers([]), "must be a list"),
    "a function": (lambda: ExpertLayers([np.tanh]), "must be a list"),
    "too few": (lambda: MoEBlock(3, experts=three_kinds()[:2]), "num_experts"),
    "level": (lambda: MoEBlock(3, 4, level="batch"), "`level` must be one of"),
    "sequence": (
        lambda: MoEBlock(3, 4, level="example", load_balancing="per_sequence"),
        "`load_balancing`",
    ),
    "null experts": (
        lambda: MoEBlock(
            3, 4, level="example", router=Router(3, num_null_experts=1)
        ),
        "`level` must be 'token'",
    ),
}


@pytest.mark.parametrize(("make", "match"), BAD.values(), ids=BAD)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_one_layer_cannot_be_two_experts():
    twice = layers.Dense(2)
    with pytest.raises(ValueError, match="must be different layers"):
        ExpertLayers([twice, twice])


def test_outputs_must_be_alike():
    bank = ExpertLayers([layers.Dense(2), layers.Dense(3)])
    bank.build((None, 2))
    with pytest.raises(ValueError, match="one structure and shape"):
        bank(np.ones((2, 2), "float32"), group_sizes=np.array([1, 1], "int32"))
