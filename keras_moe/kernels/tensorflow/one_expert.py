"""One expert's feed-forward network on TensorFlow, with its gradient.

P rows of one expert; D hidden_dim; F intermediate_dim. Written out, so that
only what stands before the activation has to be kept (or nothing, where it is
computed again), and so that a loop over experts can be differentiated without
TensorFlow stacking up everything each step has seen.

The hidden units are transposed, (F, P), so that the weights can be the first
operand of a product. As the second one of few rows, and at widths like 1024,
they are slow on a CPU of AVX2 (others not timed;
`benchmarks/speed/tensorflow_products.py`): 256 rows get 30 GFLOP/s in the
gradient of the hidden units and 34 in that of `x`, and 57 and 59 so. Forward
and backward of S, M and L take 0.85, 0.84 and 0.79 of the time.
"""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf

from keras_moe.kernels import reference
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.tensorflow.gradients import gradients_of, with_gradient
from keras_moe.types import Activation, Tensor

# Rows up to which the product is transposed, and not its operands: at F = 1024
# 32 rows get 26 GFLOP/s for 12, 128 rows 31 for 30, 256 rows 35 for 43.
FEW = 96
ALONG_ROWS = ("glu", "log_softmax", "softmax", "sparsemax")


def before_activation(x: Tensor, w: FFNWeights) -> list[Tensor]:
    """Returns `[up]`, or `[up, gate]` of a gated expert, each (F, P)."""
    return reference.before_activation(x, w, _units)


def after_activation(
    activation: Activation, before: list[Tensor], w: FFNWeights
) -> Tensor:
    """Returns the output rows (P, D) of what stands before the activation."""
    hidden = _hidden(activation, *before)
    y = tf.matmul(hidden, w.down_kernel, transpose_a=True)
    return y if w.down_bias is None else y + w.down_bias


def trained(
    activation: Activation, names: tuple[str, ...]
) -> Callable[..., Tensor]:
    """Returns a function of rows `(P, D)` and the weights of those names that
    has `gradients` for its gradient, which has a gradient again."""

    @tf.custom_gradient
    def expert(x, *slices):
        w = FFNWeights(**dict(zip(names, slices, strict=True)))
        before = before_activation(x, w)

        def backward(dy):
            dx, dw = gradients(x, dy, before, w, activation, x.dtype)
            return dx, *dw

        return after_activation(activation, before, w), backward

    return expert


def recomputed(
    activation: Activation, names: tuple[str, ...]
) -> Callable[..., Tensor]:
    """Returns `trained`'s function, which keeps only its arguments."""

    def named(slices):
        return FFNWeights(**dict(zip(names, slices, strict=True)))

    def forward(x, *slices):
        w = named(slices)
        before = before_activation(x, w)
        return after_activation(activation, before, w), []

    def first(args, _, dy):
        x, *slices = args
        return with_gradient(backward, second, x, *slices, dy)

    def backward(*args):
        # Else the optimizer of graphs takes what the forward pass computed.
        with tf.control_dependencies(args[-1:]):
            x, *slices = [tf.identity(tensor) for tensor in args[:-1]]
        w, dy = named(slices), args[-1]
        before = before_activation(x, w)
        dx, dw = gradients(x, dy, before, w, activation, x.dtype)
        return (dx, *dw), []

    def second(args, _, *cotangents):
        x, *slices, dy = args

        def compose(x, slices):
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
    """Returns the gradients of the rows and of the weights there are.

    Args:
        x: `(P, D)`, the expert's rows.
        dy: `(P, D)`, the gradient of its outputs.
        before: as `before_activation` returns it.
        w: the expert's weights.
        activation: elementwise function.
        sum_dtype: in which the weights' gradients are summed and returned.

    Returns:
        `(P, D)`, and a list in the order of the fields of `FFNWeights`,
        without the fields that are None.
    """

    def product(a, b, **transposed):
        a, b = tf.cast(a, sum_dtype), tf.cast(b, sum_dtype)
        return tf.matmul(a, b, **transposed)

    def outer(a, b):
        return product(a, b, transpose_a=True, transpose_b=True)

    def total(values, like, axis):
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
    """Returns the dtype long sums are taken in: float32 or better."""
    return dtype if dtype.size >= 4 else tf.float32


def _units(x, kernel, bias):
    """`(x kernel + bias)^T`: (F, P)."""

    def few():
        return tf.transpose(tf.matmul(x, kernel))

    def many():
        return tf.matmul(kernel, x, transpose_a=True, transpose_b=True)

    if x.shape[0] is None:
        units = tf.cond(tf.shape(x)[0] <= FEW, few, many)
    else:
        units = few() if x.shape[0] <= FEW else many()
    return units if bias is None else units + bias[:, None]


def _hidden(activation, *before):
    return reference.hidden_units(partial(_activated, activation), *before)


def _activated(activation, units):
    """Of units (F, P); only Keras's own are known to be elementwise."""
    name = getattr(activation, "__name__", "")
    own = getattr(keras.activations, name, None) is activation
    if own and name not in ALONG_ROWS:
        return activation(units)
    return tf.transpose(activation(tf.transpose(units)))


def _hidden_gradients(activation, d_hidden, *before):
    """Returns the hidden units, and the gradients before the activation."""
    if activation is keras.activations.silu and len(before) == 2:
        return _swiglu_gradients(d_hidden, *before)
    with tf.GradientTape() as tape:
        tape.watch(before)
        hidden = _hidden(activation, *before)
    return hidden, tape.gradient(hidden, before, output_gradients=d_hidden)


def _swiglu_gradients(d_hidden, up, gate):
    """The same for `silu(gate) * up`, with one sigmoid where the tape's has
    three, and no multiplication by one.
    """
    sigmoid = tf.sigmoid(gate)
    silu = gate * sigmoid
    d_silu = d_hidden * up
    slope = sigmoid + (silu - silu * sigmoid)
    return silu * up, [d_hidden * silu, d_silu * slope]
