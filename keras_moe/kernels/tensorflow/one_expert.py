"""TensorFlow: one expert's feed-forward network, with its gradient.

P rows of one expert; D hidden_dim; F intermediate_dim. The gradient is written
by hand, so that only the inputs of the activation are kept (or nothing, if
they are computed again), and so that a loop over experts can be differentiated
without stacking all intermediate results of its steps.

The hidden units are transposed, `(F, P)`, so that the weights are the first
operand of a product. As the second operand, after few rows, they are slow on
CPUs with AVX2: see `benchmarks/speed/tensorflow_products.py`. Other CPUs were
not measured.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from keras_moe.kernels import reference
from keras_moe.kernels.gated_units import ClippedSwiGLU
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.tensorflow import gated_units
from keras_moe.kernels.tensorflow.gradients import (
    Outputs,
    gradients_of,
    with_gradient,
)
from keras_moe.types import Activation, GatedUnit, Tensor

FEW = 96  # rows, up to which the product is transposed and not its operands
ALONG_ROWS = ("glu", "log_softmax", "softmax", "sparsemax")


def before_activation(x: Tensor, w: FFNWeights) -> list[Tensor]:
    """Return `[up]`, or `[up, gate]` of a gated expert, each `(F, P)`."""
    return reference.before_activation(x, w, _units)


def after_activation(
    activation: Activation, before: list[Tensor], w: FFNWeights
) -> Tensor:
    """Return the output rows `(P, D)` for the inputs of the activation."""
    hidden = _hidden(activation, *before)
    y = tf.matmul(hidden, w.down_kernel, transpose_a=True)
    return y if w.down_bias is None else y + w.down_bias


def trained(
    activation: Activation, names: tuple[str, ...]
) -> Callable[..., Tensor]:
    """Return a function of rows `(P, D)` and the weights with these names.

    `gradients` computes its gradient, which can be differentiated again.
    """

    def expert(
        x: Tensor, *slices: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
        w = FFNWeights(**dict(zip(names, slices, strict=True)))
        before = before_activation(x, w)

        def backward(dy: Tensor) -> tuple[Tensor, ...]:
            dx, dw = gradients(x, dy, before, w, activation, x.dtype)
            return dx, *dw

        return after_activation(activation, before, w), backward

    found: Callable[..., Tensor] = tf.custom_gradient(expert)
    return found


def recomputed(
    activation: Activation, names: tuple[str, ...]
) -> Callable[..., Tensor]:
    """Return the function of `trained` that keeps only its arguments."""

    def named(slices: Sequence[Tensor]) -> FFNWeights:
        return FFNWeights(**dict(zip(names, slices, strict=True)))

    def forward(x: Tensor, *slices: Tensor) -> Outputs:
        w = named(slices)
        before = before_activation(x, w)
        return after_activation(activation, before, w), []

    def first(args: Sequence[Tensor], _: Any, dy: Tensor) -> Any:
        x, *slices = args
        return with_gradient(backward, second, x, *slices, dy)

    def backward(*args: Tensor) -> Outputs:
        # Otherwise the graph optimizer reuses the forward pass's results.
        with tf.control_dependencies(args[-1:]):
            x, *slices = [tf.identity(tensor) for tensor in args[:-1]]
        w, dy = named(slices), args[-1]
        before = before_activation(x, w)
        dx, dw = gradients(x, dy, before, w, activation, x.dtype)
        return (dx, *dw), []

    def second(
        args: Sequence[Tensor], _: Any, *cotangents: Tensor
    ) -> Sequence[Tensor]:
        x, *slices, dy = args

        def compose(x: Tensor, slices: Sequence[Tensor]) -> Tensor:
            return reference.ffn(x, named(slices), activation)

        return gradients_of(compose, x, slices, dy, cotangents)

    return partial(with_gradient, forward, first)


def gradients(
    x: Tensor,
    dy: Tensor,
    before: list[Tensor],
    w: FFNWeights,
    activation: Activation,
    sum_dtype: tf.DType,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients of the rows and of the weights.

    Args:
        x: `(P, D)`. The expert's rows.
        dy: `(P, D)`. The gradient of its outputs.
        before: The result of `before_activation`.
        w: The expert's weights.
        activation: Elementwise function, or a `GatedUnit`.
        sum_dtype: The dtype in which the gradients of the weights are summed
            and returned.

    Returns:
        The gradient of the rows, `(P, D)`, and a list of gradients in the
        order of the fields of `FFNWeights`, without the fields that are None.
    """

    def product(a: Tensor, b: Tensor, **transposed: bool) -> Tensor:
        a, b = tf.cast(a, sum_dtype), tf.cast(b, sum_dtype)
        return tf.matmul(a, b, **transposed)

    def outer(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b, transpose_a=True, transpose_b=True)

    def total(values: Tensor, like: Tensor | None, axis: int) -> Tensor | None:
        wide = tf.cast(values, wide_dtype(values.dtype))
        sums = tf.reduce_sum(wide, axis=axis)
        return None if like is None else tf.cast(sums, sum_dtype)

    d_hidden = tf.matmul(w.down_kernel, dy, transpose_b=True)
    hidden, (d_up, *d_gate) = _hidden_gradients(activation, d_hidden, *before)
    dx = tf.matmul(w.up_kernel, d_up)
    gate_kernel = gate_bias = None
    if d_gate:
        dx += tf.matmul(w.gate_kernel, d_gate[0])
        gate_kernel = outer(x, d_gate[0])
        gate_bias = total(d_gate[0], w.gate_bias, axis=1)
    dw = FFNWeights(
        up_kernel=outer(x, d_up),
        down_kernel=product(hidden, dy),
        up_bias=total(d_up, w.up_bias, axis=1),
        down_bias=total(dy, w.down_bias, axis=0),
        gate_kernel=gate_kernel,
        gate_bias=gate_bias,
    )
    return tf.transpose(dx), [d for d in dw if d is not None]


def wide_dtype(dtype: tf.DType) -> tf.DType:
    """Return the dtype in which long sums are computed: float32 or better."""
    return dtype if dtype.size >= 4 else tf.float32


def _units(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Return `(x kernel + bias)^T`, `(F, P)`."""

    def few() -> Tensor:
        return tf.transpose(tf.matmul(x, kernel))

    def many() -> Tensor:
        return tf.matmul(kernel, x, transpose_a=True, transpose_b=True)

    if x.shape[0] is None:
        units = tf.cond(tf.shape(x)[0] <= FEW, few, many)
    else:
        units = few() if x.shape[0] <= FEW else many()
    return units if bias is None else units + bias[:, None]


def _hidden(activation: Activation, *before: Tensor) -> Tensor:
    """Return the hidden units `(F, P)`.

    Only activations of Keras and of this package are known to be elementwise.
    Others are applied to the transposed units.
    """
    if type(activation) is ClippedSwiGLU:
        return gated_units.hidden_units(activation, *before)
    if isinstance(activation, GatedUnit):
        before = tuple(tf.transpose(units) for units in before)
        return tf.transpose(reference.hidden_units(activation, *before))
    return reference.hidden_units(partial(_activated, activation), *before)


def _activated(activation: Activation, units: Tensor) -> Tensor:
    """Apply an activation to units `(F, P)`; see `_hidden`."""
    name = getattr(activation, "__name__", "")
    own = getattr(keras.activations, name, None) is activation
    if own and name not in ALONG_ROWS:
        return activation(units)
    return tf.transpose(activation(tf.transpose(units)))


def _hidden_gradients(
    activation: Activation, d_hidden: Tensor, *before: Tensor
) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the hidden units and the gradients before the activation."""
    if activation is keras.activations.silu and len(before) == 2:
        return _swiglu_gradients(d_hidden, *before)
    if type(activation) is ClippedSwiGLU:
        return gated_units.gradients(activation, d_hidden, *before)
    with tf.GradientTape() as tape:
        tape.watch(before)
        hidden = _hidden(activation, *before)
    return hidden, tape.gradient(hidden, before, output_gradients=d_hidden)


def _swiglu_gradients(
    d_hidden: Tensor, up: Tensor, gate: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the same for `silu(gate) * up`.

    It computes one sigmoid, of which the gradient of a tape has three, and
    does not multiply by one.
    """
    sigmoid = tf.sigmoid(gate)
    silu = gate * sigmoid
    d_silu = d_hidden * up
    slope = sigmoid + (silu - silu * sigmoid)
    return silu * up, [d_hidden * silu, d_silu * slope]
