"""Test experts that start from one trained network."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

from keras_moe import ClippedSwiGLU, Expert, HierarchicalMoE, MoEBlock

WIDTH, INNER = 6, 10


def dense_layers(gated=False, use_bias=True, activation="gelu", inner=INNER):
    """Return built Dense layers (up, down[, gate]) with nonzero biases."""
    options = {"use_bias": use_bias, "bias_initializer": "random_normal"}
    up = keras.layers.Dense(inner, None if gated else activation, **options)
    down = keras.layers.Dense(WIDTH, **options)
    gate = keras.layers.Dense(inner, activation, **options)
    up.build((None, WIDTH))
    gate.build((None, WIDTH))
    down.build((None, inner))
    return (up, down, gate) if gated else (up, down)


def dense_output(layers, x):
    hidden = layers[0](x)
    if len(layers) == 3:
        hidden = layers[2](x) * hidden
    return to_numpy(layers[1](hidden))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_without_noise_the_block_is_the_dense_network(rng, gated, use_bias):
    """Weights that sum to one keep equal outputs; the block builds itself."""
    layers = dense_layers(gated, use_bias)
    block = MoEBlock(
        4, INNER, top_k=2, activation="gelu", gated=gated, use_bias=use_bias
    )
    block.initialize_from(layers)
    x = draw(rng, 3, 5, WIDTH)
    np.testing.assert_allclose(
        to_numpy(block(x)), dense_output(layers, x), atol=1e-6
    )


def test_an_expert_of_one_is_a_source_too(rng):
    unit = ClippedSwiGLU(0.5)
    source = Expert(
        INNER,
        activation=unit,
        gated=True,
        bias_initializer="random_normal",
        trainable=False,
    )
    x = draw(rng, 7, WIDTH)
    wanted = to_numpy(source(x))
    block = MoEBlock(4, INNER, activation=unit, gated=True)
    block(x)  # built already
    block.initialize_from(source)
    np.testing.assert_allclose(to_numpy(block(x)), wanted, atol=1e-6)
    other = MoEBlock(4, INNER, activation=ClippedSwiGLU(0.6), gated=True)
    with pytest.raises(ValueError, match="the experts' activation"):
        other.initialize_from(source)


def test_the_shared_expert_and_the_router_do_not_change(rng):
    block = MoEBlock(4, INNER, activation="gelu", shared_expert_dim=3)
    x = draw(rng, 7, WIDTH)
    block(x)
    before = [
        to_numpy(w) for w in block.shared_expert.weights + block.router.weights
    ]
    layers = dense_layers()
    block.initialize_from(layers, noise_std=0.1)
    after = block.shared_expert.weights + block.router.weights
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, to_numpy(new))


def test_noise_is_relative_to_each_weight():
    """The spread over 6 x 10 weights of 100 experts is accurate to 1 %."""
    layers = dense_layers()
    layers[0].kernel.assign(100 * to_numpy(layers[0].kernel))
    layers[1].bias.assign(np.zeros(WIDTH))
    bank = Expert(INNER, 100, activation="gelu")
    bank.initialize_from(layers, noise_std=0.2, seed=1)
    for stacked, own in (
        (bank.up_kernel, layers[0].kernel),
        (bank.down_kernel, layers[1].kernel),
        (bank.up_bias, layers[0].bias),
    ):
        own = to_numpy(own)
        noise = to_numpy(stacked) - own
        few = 5 / np.sqrt(2 * noise.size)
        np.testing.assert_allclose(noise.std(), 0.2 * own.std(), rtol=few)
        assert len(np.unique(noise.reshape(100, -1), axis=0)) == 100
    np.testing.assert_array_equal(to_numpy(bank.down_bias), np.zeros((100, 6)))


def test_a_seed_repeats_and_so_does_the_global_one():
    def kernel(seed=None, everywhere=0):
        keras.utils.set_random_seed(0)
        layers = dense_layers()
        keras.utils.set_random_seed(everywhere)
        bank = Expert(INNER, 3, activation="gelu")
        bank.initialize_from(layers, noise_std=0.1, seed=seed)
        return to_numpy(bank.up_kernel)

    np.testing.assert_array_equal(kernel(3), kernel(3, everywhere=1))
    np.testing.assert_array_equal(kernel(), kernel())
    assert (kernel() != kernel(everywhere=1)).any()
    assert (kernel(3) != kernel(4)).all()


@pytest.mark.parametrize(
    "layers, options",
    [
        (lambda: dense_layers(inner=11), {}),
        (lambda: dense_layers(use_bias=False), {}),
        (lambda: dense_layers(), {"use_bias": False}),
        (lambda: dense_layers(gated=True), {}),
        (lambda: dense_layers(), {"gated": True}),
        (lambda: dense_layers(activation="relu"), {}),
        (lambda: dense_layers()[::-1], {}),
        (lambda: dense_layers()[:1], {}),
        (lambda: [keras.layers.Dense(3), keras.layers.Dense(3)], {}),
        (lambda: Expert(INNER, activation="gelu"), {}),
        (lambda: "a.keras", {}),
    ],
    ids=[
        "width",
        "no bias in the source",
        "no bias in the experts",
        "gate in the source",
        "gate in the experts",
        "activation",
        "order",
        "one layer",
        "not built",
        "expert not built",
        "a path",
    ],
)
def test_sources_that_do_not_fit(layers, options):
    bank = Expert(INNER, 3, activation="gelu", **options)
    with pytest.raises(ValueError, match="`source` must .*Received: source"):
        bank.initialize_from(layers())


def test_a_bank_of_several_is_no_source():
    several = Expert(INNER, 2)
    several.build((None, WIDTH))
    with pytest.raises(ValueError, match="`source` must .*num_experts=1"):
        MoEBlock(4, INNER).initialize_from(several)


@pytest.mark.parametrize("kind", [MoEBlock, HierarchicalMoE])
def test_a_list_of_layers_cannot_start_from_a_network(kind, rng):
    """The error shows how to do so by hand, which works."""

    source, *experts = (keras.Sequential(dense_layers()) for _ in range(5))
    groups = {"num_groups": 2} if kind is HierarchicalMoE else {}
    block = kind(experts=experts, **groups)
    x = draw(rng, 3, WIDTH)
    expected = to_numpy(source(x))
    with pytest.raises(ValueError, match="`experts` must be an `Expert`") as e:
        block.initialize_from(source)
    block.build(x.shape)
    remedy = str(e.value).split("`")[7]
    exec(remedy, {"block": block, "source": source})
    outputs = to_numpy(block.experts.layers[2](x))
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)


def test_negative_noise():
    with pytest.raises(ValueError, match="`noise_std` must"):
        Expert(INNER, 3).initialize_from(dense_layers(), noise_std=-1)


def test_an_activation_behind_a_linear_dense(rng):
    """`Dense(F)` followed by `Activation("gelu")` is the same network."""
    linear = dense_layers(activation=None)
    bank = Expert(INNER, activation="gelu")
    bank.initialize_from(linear)
    x = draw(rng, 4, WIDTH)
    hidden = keras.activations.gelu(linear[0](x))
    np.testing.assert_allclose(
        to_numpy(bank(x)), to_numpy(linear[1](hidden)), atol=1e-6
    )
