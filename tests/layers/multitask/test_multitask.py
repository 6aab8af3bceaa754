"""Compare mixtures that have one output per task with NumPy."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy
from mixture_oracle import expert, mixture, randomize, softmax

from keras_moe import CGC, PLE, Expert, MultiGateMoE

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

T, D, F, H = 7, 4, 6, 5
LAYERS = {
    "MultiGateMoE": lambda **kw: MultiGateMoE(3, F, num_tasks=2, **kw),
    "CGC": lambda **kw: CGC(2, 1, 3, F, **kw),
    "PLE": lambda **kw: PLE(2, 1, 3, F, **kw),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def bank_outputs(bank, x):
    return [expert(bank, e, x) for e in range(bank.num_experts)]


def task_weights(layer, k, x):
    return softmax(x @ to_numpy(layer.router_kernels[k]))


def cgc_by_hand(layer, inputs):
    """Compute section 4.1 of the paper from the tasks' and shared inputs."""
    *own, shared = (
        bank_outputs(bank, x)
        for bank, x in zip(
            [*layer.task_experts, layer.shared_experts], inputs, strict=True
        )
    )
    outputs = [
        mixture(mine + shared, task_weights(layer, k, inputs[k]))
        for k, mine in enumerate(own)
    ]
    if layer.return_shared:
        all_outputs = sum(own, []) + shared
        weights = task_weights(layer, layer.num_tasks, inputs[-1])
        outputs.append(mixture(all_outputs, weights))
    return outputs


def close(outputs, wanted):
    for mine, theirs in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(to_numpy(mine), theirs, rtol=1e-4, atol=1e-4)


def test_multi_gate_is_equations_6_and_7(rng):
    layer = MultiGateMoE(3, F, num_tasks=2, output_dim=H)
    layer.build((None, D))
    randomize(layer, rng)
    x = draw(rng, T, D)
    experts = bank_outputs(layer.experts, x)
    weights = [task_weights(layer, k, x) for k in range(2)]
    close(layer(x), [mixture(experts, w) for w in weights])
    close(layer.mixture_weights(x), weights)


def test_one_expert_and_one_task_are_a_dense_network(rng):
    """The only mixture weight is 1."""
    layer = MultiGateMoE(1, F, num_tasks=1)
    x = draw(rng, 2, 3, D)
    (y,) = layer(x)
    dense = Expert(F)
    dense.build(x.shape)
    dense.set_weights(layer.experts.get_weights())
    np.testing.assert_allclose(to_numpy(y), to_numpy(dense(x)), atol=1e-6)


@pytest.mark.parametrize("return_shared", [False, True])
def test_cgc_is_its_equations(rng, return_shared):
    layer = CGC(2, 2, 3, F, return_shared, output_dim=H)
    layer.build((None, D))
    randomize(layer, rng)
    x = draw(rng, T, D)
    close(layer(x), cgc_by_hand(layer, [x, x, x]))
    inputs = [draw(rng, T, D) for _ in range(3)]
    close(layer(inputs), cgc_by_hand(layer, inputs))
    shapes = [w.shape for w in layer.mixture_weights(x)]
    wanted = [(T, 5), (T, 5), (T, 8)][: 2 + return_shared]
    assert [tuple(shape) for shape in shapes] == wanted


def test_a_task_does_not_use_the_experts_of_others(rng):
    layer = CGC(2, 1, 2, F)
    x = draw(rng, T, D)
    before = [to_numpy(y) for y in layer(x)]
    bank = layer.task_experts[1].down_kernel
    bank.assign(bank.numpy() + 1)
    after = [to_numpy(y) for y in layer(x)]
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).any()


def test_ple_is_a_stack_of_cgc(rng):
    """Each layer reads the one below, and the last has no shared output."""
    layer = PLE(2, 1, 2, F, num_layers=3, output_dim=H)
    layer.build((None, D))
    randomize(layer, rng)
    x = draw(rng, T, D)
    inputs = [x] * 3
    for part in layer.layers:
        inputs = cgc_by_hand(part, inputs)
    assert len(inputs) == 2
    for mine, theirs in zip(layer(x), inputs, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(to_numpy(mine), theirs, atol=1e-5 * scale)
    assert [part.return_shared for part in layer.layers] == [True, True, False]


def test_one_layer_of_ple_is_cgc(rng):
    ple, cgc = PLE(2, 1, 2, F, num_layers=1), CGC(2, 1, 2, F)
    x = draw(rng, T, D)
    for layer in (ple, cgc):
        layer.build(x.shape)
    cgc.set_weights(ple.get_weights())
    close(ple(x), [to_numpy(y) for y in cgc(x)])


@every_layer
def test_padding_is_zero_and_reaches_no_gradient(make, rng):
    class Sum(keras.layers.Layer):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer
            self.supports_masking = True

        def call(self, x, mask=None, training=None):
            return sum(self.layer(x, mask=mask, training=training))

    layer = make()
    x = draw(rng, 2, 3, D)
    mask = np.array([[True, True, False], [False] * 3])
    whole = [to_numpy(y) for y in layer(x)]
    x[~mask] = np.nan
    for y, other in zip(layer(x, mask=mask), whole, strict=True):
        np.testing.assert_array_equal(to_numpy(y)[~mask], 0)
        np.testing.assert_allclose(to_numpy(y)[mask], other[mask], atol=1e-5)
    _, gradients = layer_gradients(Sum(layer), x, mask=mask)
    assert all(np.isfinite(g).all() for g in gradients.values())


@pytest.mark.every_backend
@every_layer
def test_masks_of_keras_reach_every_output(make):
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, D, mask_zero=True)(inputs)
    outputs = make()(x)
    model = keras.Model(inputs, [keras.layers.LSTM(3)(y) for y in outputs])
    ids = np.array([[3, 4, 0, 0], [1, 2, 5, 0]])
    for one, other in zip(model(ids), model(ids[:, :3]), strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-6)


@every_layer
def test_config_shapes_and_banks_of_their_own(make, rng):
    """Banks and routers that share an initializer start with other values."""
    layer = make(output_dim=H, seed=3, dropout=0.2, kernel_regularizer="l2")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    symbolic = layer(keras.Input((3, D), batch_size=2))
    eager = layer(draw(rng, 2, 3, D), training=True)
    for one, other in zip(symbolic, eager, strict=True):
        assert tuple(one.shape) == tuple(other.shape) == (2, 3, H)
    assert layer.compute_output_shape((2, 3, D)) == [(2, 3, H)] * 2
    kernels = [w.numpy() for w in layer.weights if "kernel" in w.name]
    for i, one in enumerate(kernels):
        for other in kernels[:i]:
            assert one.shape != other.shape or (one != other).any()


def test_mixture_weights_are_float32_under_any_policy(rng):
    layer = MultiGateMoE(3, F, num_tasks=2, dtype="mixed_bfloat16")
    x = draw(rng, T, D)
    dtype = keras.backend.standardize_dtype
    assert {dtype(y.dtype) for y in layer(x)} == {"bfloat16"}
    assert {dtype(w.dtype) for w in layer.mixture_weights(x)} == {"float32"}


@pytest.mark.every_backend
@pytest.mark.parametrize("name", ["MultiGateMoE", "CGC"])  # PLE: zoo.py
def test_a_model_of_two_heads_trains_saves_and_loads(name, rng, tmp_path):
    inputs = keras.Input((D,))
    heads = [keras.layers.Dense(1)(y) for y in LAYERS[name]()(inputs)]
    model = keras.Model(inputs, heads)
    x = draw(rng, 64, D)
    targets = [x[:, :1], x[:, 1:2] ** 2]
    model.compile(keras.optimizers.Adam(0.01), ["mse", "mse"])
    before = [to_numpy(w) for w in model.trainable_weights]
    history = model.fit(x, targets, epochs=6, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for was, weight in zip(before, model.trainable_weights, strict=True):
        assert (to_numpy(weight) != was).any(), weight.path
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(
        again.predict(x, verbose=0), model.predict(x, verbose=0), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: MultiGateMoE(0, F, 2), "`num_experts` must be"),
        (lambda: MultiGateMoE(3, F, 0), "`num_tasks` must be"),
        (lambda: CGC(2, 0, 3, F), "`num_shared_experts` must be"),
        (lambda: CGC(2, 1, 0, F), "`num_task_experts` must be"),
        (lambda: PLE(2, 1, 3, F, num_layers=0), "`num_layers` must be"),
        (lambda: PLE(2, 1, 3, F, output_dim=0), "`output_dim` must be"),
        (lambda: CGC(2, 1, 3, 0), "`intermediate_dim` must be"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_another_number_of_inputs(rng):
    layer = CGC(2, 1, 3, F)
    with pytest.raises(ValueError, match="a list of num_tasks \\+ 1"):
        layer([draw(rng, T, D)] * 2)
