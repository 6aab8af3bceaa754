"""Quantize the kernels of an `Expert`, each expert separately.

E experts, D inputs and F outputs of a kernel, G blocks of D with a scale each.
"""

from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_moe import _keras, kernels
from keras_moe.kernels.quantized import ZERO_NIBBLE
from keras_moe.layers import quantization

Array: TypeAlias = np.ndarray[Any, Any]
NAMES = ("up", "gate", "down")
FOUR_BITS: dict[str, Any] = {"value_range": (-8, 7), "output_dtype": "int8"}


def quantize(
    experts: keras.layers.Layer,
    mode: str | None,
    config: keras.quantizers.QuantizationConfig | None,
) -> None:
    """Replace the kernels of a bank by integers and scales.

    Args:
        experts: A built `Expert`.
        mode: `"int8"` or `"int4"`.
        config: `keras.quantizers.Int8QuantizationConfig` or
            `Int4QuantizationConfig`.

    Raises:
        ValueError: If the mode is another one, or if stacked kernels cannot be
            quantized with the quantizers of `config`.
    """
    mode = quantization.check_mode(mode)
    block = quantization.block_size_of(experts, config)
    rounding_of(config)  # raises an error before any kernel is changed
    for name in NAMES:
        kernel = getattr(experts, f"{name}_kernel", None)
        if kernel is None:
            continue
        values, scale = _integers(_array(kernel), mode, config, block)
        shape = kernel.shape
        delattr(experts, f"{name}_kernel")
        kernel = add_kernel(experts, name, shape, mode, block)
        setattr(experts, f"{name}_kernel", kernel)
        kernel.assign(values)
        getattr(experts, f"{name}_scale").assign(scale)
    experts.quantization_config = config
    quantization.set_policy(experts, mode, block)


def build_kernel(
    experts: keras.layers.Layer, name: str, shape: tuple[int, int, int]
) -> keras.Variable:
    """Add the weights of a kernel to a bank that is built as quantized."""
    mode = quantization.check_mode(experts.quantization_mode)
    block = quantization.block_size_of(experts, experts.quantization_config)
    return add_kernel(experts, name, shape, mode, block)


def add_kernel(
    experts: keras.layers.Layer,
    name: str,
    shape: tuple[int, int, int],
    mode: str,
    block: int | None,
) -> keras.Variable:
    """Add the integers and `{name}_scale` of a kernel; return the integers.

    Args:
        experts: An `Expert`.
        name: Str. `"up"`, `"gate"`, or `"down"`.
        shape: Tuple of int, `(E, D, F)`.
        mode: `"int8"` or `"int4"`.
        block: Int. Number of rows that share a scale. None for all D rows.
    """
    num_experts, depth, width = shape
    stored = depth if mode == "int8" else -(-depth // 2)
    kernel = experts.add_weight(
        name=f"{name}_kernel",
        shape=(num_experts, stored, width),
        initializer="zeros",
        dtype="int8" if mode == "int8" else "uint8",
        trainable=False,
    )
    scale = experts.add_weight(
        name=f"{name}_scale",
        shape=(num_experts, -(-depth // (block or depth)), width),
        initializer="ones",
        trainable=False,
    )
    setattr(experts, f"{name}_scale", scale)
    _keras.mark_quantized(experts)
    return kernel


def kernel_of(
    experts: keras.layers.Layer, name: str
) -> kernels.QuantizedKernel | None:
    """Return a kernel as `kernels.QuantizedKernel`, or None without one."""
    values = getattr(experts, f"{name}_kernel")
    if values is None:
        return None
    scale = getattr(experts, f"{name}_scale")
    config = experts.quantization_config
    block = None
    if scale.shape[1] > 1:
        block = quantization.block_size_of(experts, config)
    rounding = quantization.default_rounding(experts.quantization_mode)
    if config is not None:
        rounding = rounding_of(config)
    return kernels.QuantizedKernel(values, scale, rounding, block)


def rounding_of(config: Any) -> kernels.Rounding | None:
    """Return how the `activation_quantizer` of a config rounds rows.

    Raises:
        ValueError: If the quantizer is not Keras's `AbsMaxQuantizer`.
    """
    quantizer = config.activation_quantizer
    if quantizer is None:
        return None
    if isinstance(quantizer, keras.quantizers.AbsMaxQuantizer):
        low, high = quantizer.value_range
        return kernels.Rounding(low, high, quantizer.epsilon)
    raise ValueError(
        "`activation_quantizer` must be None or keras.quantizers."
        "AbsMaxQuantizer if there are experts: the kernels round each row by "
        f"its largest element. Received: {quantizer!r}. Pass None to quantize "
        "only weights."
    )


def _array(kernel: keras.Variable) -> Array:
    tensor = ops.stop_gradient(ops.convert_to_tensor(kernel))
    array: Array = ops.convert_to_numpy(ops.cast(tensor, "float32"))
    return array


def _integers(
    bank: Array,
    mode: str,
    config: keras.quantizers.QuantizationConfig,
    block: int | None,
) -> tuple[Array, Array]:
    """Return the integers and scales of a float bank `(E, D, F)`."""
    quantizer = config.weight_quantizer
    if quantizer is None:
        options = {} if mode == "int8" else FOUR_BITS
        quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, **options)
    pairs = [_one_expert(matrix, quantizer, block) for matrix in bank]
    values = np.stack([values for values, _ in pairs])
    scale = np.stack([scale for _, scale in pairs])
    return (values if mode == "int8" else _packed(values)), scale


def _one_expert(
    matrix: Array, quantizer: keras.quantizers.Quantizer, block: int | None
) -> tuple[Array, Array]:
    """Return int8 `(D, F)` and its scales `(G, F)`."""
    depth, width = matrix.shape
    block = block or depth
    blocks = -(-depth // block)
    padded = np.zeros((blocks * block, width), "float32")
    padded[:depth] = matrix
    columns = padded.reshape(blocks, block, width).swapaxes(0, 1)
    values, divisor = quantizer(columns.reshape(block, -1), to_numpy=True)
    divisor = ops.convert_to_numpy(divisor)
    if divisor.shape != (1, blocks * width):
        raise ValueError(
            "`weight_quantizer` must give each output channel of a (D, F) "
            f"matrix one scale. Received: {quantizer!r}, scales of shape "
            f"{divisor.shape} for {blocks * width} channels. Pass "
            "keras.quantizers.AbsMaxQuantizer(axis=0)."
        )
    values = ops.convert_to_numpy(values).reshape(block, blocks, width)
    values = values.swapaxes(0, 1).reshape(-1, width)[:depth]
    return values, (1 / divisor).reshape(blocks, width)


def _packed(values: Array) -> Array:
    """Pack integers -8 ... 7 `(E, D, F)`, two rows per byte; see `kernels`."""
    num_experts, depth, width = values.shape
    nibbles = np.full((num_experts, depth + depth % 2, width), ZERO_NIBBLE)
    nibbles[:, :depth] += values
    low, high = np.split(nibbles, 2, axis=1)
    packed: Array = (low + 16 * high).astype("uint8")
    return packed
