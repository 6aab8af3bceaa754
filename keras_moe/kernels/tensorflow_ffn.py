"""One expert's feed-forward network on TensorFlow, with its gradient.

P rows of one expert; D hidden_dim; F intermediate_dim. Written out, so that
only what stands before the activation has to be kept (or nothing, where it is
computed again), and so that a loop over experts can be differentiated without
TensorFlow stacking up everything each step has seen.
"""

import keras
import tensorflow as tf

from keras_moe.kernels.reference import FFNWeights, linear
from keras_moe.types import Activation, Tensor


def before_activation(x: Tensor, w: FFNWeights) -> list[Tensor]:
    """Returns `[up]`, or `[up, gate]` of a gated expert, each (P, F)."""
    up = linear(x, w.up_kernel, w.up_bias)
    if w.gate_kernel is None:
        return [up]
    return [up, linear(x, w.gate_kernel, w.gate_bias)]


def after_activation(
    activation: Activation, before: list[Tensor], w: FFNWeights
) -> Tensor:
    """Returns the output rows (P, D) of what stands before the activation."""
    hidden = _hidden(activation, *before)
    return linear(hidden, w.down_kernel, w.down_bias)


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
        before: from `before_activation`.
        w: the expert's weights.
        activation: elementwise function.
        sum_dtype: in which the weights' gradients are summed and returned.

    Returns:
        `(P, D)`, and a list in the order of the fields of `FFNWeights`,
        without the fields that are None.
    """

    def outer(a, b):
        a, b = tf.cast(a, sum_dtype), tf.cast(b, sum_dtype)
        return tf.matmul(a, b, transpose_a=True)

    def total(rows, like):
        wide = tf.cast(rows, wide_dtype(rows.dtype))
        sums = tf.reduce_sum(wide, axis=0)
        return None if like is None else tf.cast(sums, sum_dtype)

    d_hidden = tf.matmul(dy, w.down_kernel, transpose_b=True)
    hidden, (d_up, *d_gate) = _hidden_gradients(activation, d_hidden, *before)
    dx = tf.matmul(d_up, w.up_kernel, transpose_b=True)
    gate_kernel = gate_bias = None
    if d_gate:
        dx += tf.matmul(d_gate[0], w.gate_kernel, transpose_b=True)
        gate_kernel = outer(x, d_gate[0])
        gate_bias = total(d_gate[0], w.gate_bias)
    dw = FFNWeights(
        up_kernel=outer(x, d_up),
        down_kernel=outer(hidden, dy),
        up_bias=total(d_up, w.up_bias),
        down_bias=total(dy, w.down_bias),
        gate_kernel=gate_kernel,
        gate_bias=gate_bias,
    )
    return dx, [d for d in dw if d is not None]


def wide_dtype(dtype: tf.DType) -> tf.DType:
    """Returns the dtype long sums are taken in: float32 or better."""
    return dtype if dtype.size >= 4 else tf.float32


def _hidden(activation, up, gate=None):
    return activation(up) if gate is None else activation(gate) * up


def _hidden_gradients(activation, d_hidden, *before):
    """Returns the hidden rows, and the gradients before the activation."""
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
