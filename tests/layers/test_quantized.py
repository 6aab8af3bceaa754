"""Test `model.quantize` of every layer that contains a bank of experts."""

import math
import os
import warnings

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, layer_gradients, to_numpy
from elsewhere import run_on
from keras import quantizers
from zoo import LAYERS, WIDTH, model_of

import keras_moe
from keras_moe import kernels
from keras_moe.model_surgery.find import find_routers

# Keras warns about every layer without `quantize`.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize` method"
)
CONFIGS = {
    "int8": quantizers.Int8QuantizationConfig,
    "int8 weights": lambda: quantizers.Int8QuantizationConfig(
        activation_quantizer=None
    ),
    "int4 in blocks": lambda: quantizers.Int4QuantizationConfig(block_size=3),
    "int4 dynamic": lambda: quantizers.Int4QuantizationConfig(
        activation_quantizer=quantizers.AbsMaxQuantizer(), block_size=None
    ),
}
POLICIES = {
    "int8": "int8_from_float32",
    "int8 weights": "int8_from_float32",
    "int4 in blocks": "int4/3_from_float32",
    "int4 dynamic": "int4/-1_from_float32",
}
ITEM_BYTES = {"float32": 4, "int8": 1, "uint8": 1}


def tokens(rng):
    return draw(rng, 2, 6, WIDTH)


def predict(model, x):
    return np.asarray(model.predict(x, verbose=0))


def save_and_load(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


def bank(num_experts=3, **kwargs):
    layer = keras_moe.Expert(10, num_experts, name="experts", **kwargs)
    layer.build((None, WIDTH))
    return layer


def chain(layers):
    """Return a model that chains layers."""
    inputs = x = keras.Input((6, WIDTH))
    for layer in layers:
        x = keras.layers.LayerNormalization()(x + layer(x))
    return keras.Model(inputs, x)


def test_every_way_is_saved_and_loaded_on_every_backend(rng, tmp_path):
    """One model has a block per mode, and the outputs change a little."""
    blocks = {how: LAYERS["MoEBlock"]() for how in CONFIGS}
    blocks["int8"] = LAYERS["MoEBlock"](shared_expert_dim=6)
    model, x = chain(blocks.values()), tokens(rng)
    floats = predict(model, x)
    blocks["int8"].shared_expert.quantize(config=CONFIGS["int8"]())
    for how, block in blocks.items():
        block.experts.quantize(config=CONFIGS[how]())
        assert block.experts.dtype_policy.name == POLICIES[how]
        assert block.experts.up_kernel.dtype == (
            "int8" if how.startswith("int8") else "uint8"
        )
    model.predict_function = None  # as `model.quantize` does
    outputs = predict(model, x)
    assert 0 < abs(outputs - floats).max() < 0.5 * abs(floats).max()
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(predict(loaded, x), outputs)
    with pytest.raises(ValueError, match="already quantized"):
        loaded.quantize("int8")

    other = "torch" if BACKEND != "torch" else "tensorflow"
    np.save(tmp_path / "x.npy", x)
    run_on(other, "load_elsewhere", tmp_path)
    y = np.load(tmp_path / f"model.{other}.npy")
    # Rows are rounded, and a last bit may round the other way.
    np.testing.assert_allclose(y, outputs, atol=0.02)


def test_whatever_holds_experts_comes_back(rng, tmp_path):
    """The mode is not Keras's default, and attention is quantized as well."""
    names = (
        "Expert gated",
        "SoftMoE",
        "MoEBlock of layers",
        "TransformerEncoderBlock",
        "TransformerDecoderBlock",
    )
    model, x = chain([LAYERS[name]() for name in names]), tokens(rng)
    model.quantize(config=CONFIGS["int8 weights"]())
    outputs = predict(model, x)
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(predict(loaded, x), outputs)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        assert one.dtype == other.dtype


def test_a_classifier_is_saved_and_loaded(tmp_path):
    model = keras_moe.models.MoEClassifier(
        20,
        3,
        max_length=6,
        hidden_dim=8,
        num_heads=2,
        num_layers=1,
        num_experts=3,
        intermediate_dim=8,
    )
    model.quantize("int8")
    ids = np.arange(12).reshape(2, 6) % 20
    loaded = save_and_load(model, tmp_path)
    np.testing.assert_array_equal(predict(loaded, ids), predict(model, ids))


def test_weights_alone_are_saved_and_loaded(tmp_path):
    models = [chain([LAYERS["MoEBlock"]()]) for _ in range(2)]
    for model in models:
        model.quantize("int8")
    models[0].save_weights(tmp_path / "a.weights.h5")
    models[1].load_weights(tmp_path / "a.weights.h5")
    for one, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow writes LiteRT")
def test_litert_keeps_the_bytes_and_skips_idle_experts(rng, tmp_path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    block = keras_moe.MoEBlock(4, 256, top_k=1, gated=True)
    inputs = keras.Input((None, 64))
    model = keras.Model(inputs, block(inputs))
    floats = sum(math.prod(w.shape) * 4 for w in block.experts.weights)
    model.quantize("int4")
    path = str(tmp_path / "model.tflite")
    model.export(path, format="litert", verbose=False)
    assert os.path.getsize(path) < 0.4 * floats  # 0.13 plus the graph
    interpreter = litert.Interpreter(path)
    index = interpreter.get_input_details()[0]["index"]
    for shape in ((1, 1, 64), (2, 7, 64)):  # one token leaves three idle
        x = draw(rng, *shape)
        interpreter.resize_tensor_input(index, shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, x)
        interpreter.invoke()
        output = interpreter.get_output_details()[0]["index"]
        np.testing.assert_allclose(
            interpreter.get_tensor(output), to_numpy(model(x)), atol=1e-5
        )


def test_the_values_are_each_experts_and_channels():
    """The largest weight of each expert's channel becomes 127."""
    experts = bank(2, use_bias=False)
    kernel = np.zeros((2, WIDTH, 10), "float32")
    kernel[0, :2, 0] = [1.0, -0.5]
    kernel[1, :2, 0] = [100.0, 20.0]
    experts.up_kernel.assign(kernel)
    experts.quantize("int8")
    values = to_numpy(experts.up_kernel)
    # Because of an epsilon, 127 * 0.5 is slightly less than 63.5.
    assert values[0, :2, 0].tolist() == [127, -63]
    assert values[1, :2, 0].tolist() == [127, 25]
    scale = to_numpy(experts.up_scale)
    np.testing.assert_allclose(scale[:, 0, 0], [1 / 127, 100 / 127], rtol=1e-5)


@pytest.mark.parametrize("mode, most", [("int8", 0.27), ("int4", 0.15)])
def test_bytes(mode, most):
    layer = keras_moe.Expert(256, 4)
    layer.build((None, 256))

    def size():
        return sum(
            math.prod(w.shape) * ITEM_BYTES[w.dtype] for w in layer.weights
        )

    floats = size()
    layer.quantize(mode)
    assert size() <= most * floats


@keras.saving.register_keras_serializable(package="tests")
class DenseRouter(keras_moe.Router):
    """A router that contains Keras layers."""

    def build(self, input_shape):
        super().build(input_shape)
        self.dense = keras.layers.Dense(WIDTH)
        self.more = [keras.layers.Dense(WIDTH)]
        for layer in (self.dense, *self.more):
            layer.build(input_shape)


def test_routers_are_not_quantized():
    router = DenseRouter(3)
    model = model_of(keras_moe.MoEBlock(3, 10, router=router))
    model.quantize("int8")  # without a warning
    assert [r.quantization_mode for r in find_routers(model)] == [None]
    assert {w.dtype for w in router.weights} == {"float32"}
    assert router.dense.quantization_mode is None


def test_every_layer_of_the_package_has_quantize():
    """Layers that stay in floats on purpose cause no warning."""
    inputs = x = keras.Input((6, WIDTH))
    routers = [
        keras_moe.Router(3, num_null_experts=1),
        keras_moe.NoisyTopKRouter(3),
        keras_moe.AttentionRouter(3),
        keras_moe.ReLURouter(3),
        DenseRouter(3),
    ]
    weight = keras_moe.training.BalanceWarmUp()
    for router in routers:
        block = keras_moe.MoEBlock(
            3, 10, router=router, load_balancing_weight=weight
        )
        x = block(x)
    positions = keras_moe.models.embedding_layers.PositionEmbedding(9)
    model = keras.Model(inputs, positions(x))
    before = [np.array(w) for r in routers for w in r.get_weights()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.quantize("int8")
    lacking = [
        str(w.message).split()[1]
        for w in caught
        if "does not have a `quantize` method" in str(w.message)
    ]
    assert set(lacking) == {"InputLayer"}
    after = [w for r in routers for w in r.get_weights()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradients_of_inputs_and_biases(rng):
    """The gradients equal the reference's, and kernels have none."""
    experts = bank()
    experts.quantize("int8")
    for bias in (experts.up_bias, experts.down_bias):
        bias.assign(draw(rng, *bias.shape))
    x, sizes = draw(rng, 7, WIDTH), np.array([3, 0, 4], "int32")
    y, gradients = layer_gradients(experts, x, group_sizes=sizes)
    with kernels.use("reference"):
        wanted, expected = layer_gradients(experts, x, group_sizes=sizes)
    assert set(gradients) == {"inputs", "up_bias", "down_bias"}
    # Rows are rounded, and a last bit may round the other way.
    np.testing.assert_allclose(y, wanted, atol=0.05)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], atol=0.05)


def test_one_expert_needs_no_groups(rng):
    layer = keras_moe.Expert(10, dropout=0.5)
    x = draw(rng, 2, 3, WIDTH)
    floats = to_numpy(layer(x))
    layer.quantize("int8")
    np.testing.assert_allclose(to_numpy(layer(x)), floats, atol=0.1)
    dropped = to_numpy(layer(x, training=True))
    assert dropped.shape == x.shape and abs(dropped - floats).max() > 0.1


def test_mixed_precision(rng):
    experts = bank(dtype="mixed_bfloat16")
    experts.quantize("int4")
    assert experts.dtype_policy.name == "int4/128_from_mixed_bfloat16"
    sizes = np.array([3, 0, 4], "int32")
    y = experts(draw(rng, 7, WIDTH), group_sizes=sizes)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


class Subclass(keras_moe.Expert):
    """A subclass, which Keras does not quantize, either."""


def test_what_cannot_be_quantized_raises_an_error():
    with pytest.raises(ValueError, match="one scale.*filters"):
        bank().quantize("float8")
    layer = Subclass(4)
    layer.build((None, WIDTH))
    with pytest.raises(NotImplementedError, match="Subclass"):
        layer.quantize("int8")
    per_row = quantizers.AbsMaxQuantizer(axis=1)
    experts = bank()
    with pytest.raises(ValueError, match="`weight_quantizer`"):
        experts.quantize(config=quantizers.Int8QuantizationConfig(per_row))
    assert experts.up_kernel.dtype == "float32"
    experts.quantize("int8")
    with pytest.raises(ValueError, match="float kernels"):
        experts.initialize_from(bank(1))


def test_calibrated_modes_raise_an_error():
    config = quantizers.GPTQConfig(dataset=None, tokenizer=None)
    with pytest.raises(ValueError, match="calibrates"):
        bank().quantize(config=config)
