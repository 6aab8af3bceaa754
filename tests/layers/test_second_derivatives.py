"""Test gradients of gradients (a penalty) with every formulation."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from derivatives import second_gradients
from keras import activations, ops
from kernel_cases import D, E, ffn_function, ffn_weights, grouped_matmul

from keras_moe import ClippedSwiGLU, MoEBlock, kernels

HIDDEN, INNER, EXPERTS = 3, 4, 10  # more than TensorFlow unrolls


def dense_block(x, kernel, up, up_bias, down, down_bias):
    """Compute softmax routing to the best two tanh experts, in NumPy."""
    logits = x @ kernel
    best = np.argsort(-logits.real, axis=-1)[:, :2]
    chosen = np.take_along_axis(logits, best, axis=-1)
    weights = np.exp(chosen) / np.exp(chosen).sum(axis=-1, keepdims=True)
    y = np.zeros_like(x)
    for token, experts in enumerate(best):
        for weight, e in zip(weights[token], experts, strict=True):
            hidden = np.tanh(x[token] @ up[e] + up_bias[e])
            y[token] += weight * (hidden @ down[e] + down_bias[e])
    return y


def dense_penalty(x, *weights):
    """Return the sum of squares of d sum(sin(y)) / dx, by complex steps."""
    step, total = 1e-30, 0.0
    for position in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[position] += 1j * step
        y = np.sin(dense_block(moved, *weights)).sum()
        total += (y.imag / step) ** 2
    return total


def block_penalty_gradients(block, x):
    """Return gradients for inputs and weights, in `dense_block`'s order."""
    bank = block.experts
    variables = [block.router.kernel, bank.up_kernel, bank.up_bias]
    variables += [bank.down_kernel, bank.down_bias]
    if BACKEND == "jax":
        import jax

        order = [v.path for v in block.trainable_variables]
        state = [v.value for v in block.non_trainable_variables]
        paths = [v.path for v in variables]

        def total(x, values):
            named = dict(zip(paths, values, strict=True))
            weights = [named[path] for path in order]
            y, _ = block.stateless_call(weights, state, x)
            return ops.sum(ops.sin(y))

        def penalty(x, values):
            return ops.sum(jax.grad(total)(x, values) ** 2)

        values = [v.value for v in variables]
        dx, dvalues = jax.jit(jax.grad(penalty, (0, 1)))(x, values)
        return [dx, *dvalues]
    if BACKEND == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        total = torch.sin(block(x)).sum()
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        values = [v.value for v in variables]
        return torch.autograd.grad((first**2).sum(), [x, *values])
    import tensorflow as tf

    x = tf.constant(x)
    values = [v.value for v in variables]
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            total = tf.reduce_sum(tf.sin(block(x)))
        penalty = tf.reduce_sum(inner.gradient(total, x) ** 2)
    found = outer.gradient(penalty, [x, *values])
    return [tf.convert_to_tensor(g) for g in found]


@pytest.mark.parametrize("formulation", [None, "reference"])
def test_a_gradient_penalty_equals_differences_of_a_dense_one(rng, formulation):
    block = MoEBlock(EXPERTS, INNER, activation="tanh")
    x = draw(rng, 5, HIDDEN)
    block(x)
    bank = block.experts
    variables = [block.router.kernel, bank.up_kernel, bank.up_bias]
    variables += [bank.down_kernel, bank.down_bias]
    for variable in variables:
        variable.assign(draw(rng, *variable.shape))
    with kernels.use(formulation) if formulation else nullcontext():
        found = block_penalty_gradients(block, x)
    arrays = [np.float64(x), *(np.float64(to_numpy(v)) for v in variables)]
    step = 1e-5
    for number, gradient in enumerate(map(to_numpy, found)):
        direction = rng.normal(size=gradient.shape)

        def moved(by, number=number, direction=direction):
            arguments = list(arrays)
            arguments[number] = arrays[number] + by * direction
            return dense_penalty(*arguments)

        expected = (moved(step) - moved(-step)) / (2 * step)
        got = np.sum(gradient * direction)
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-3), number


@pytest.mark.parametrize(
    "gated, remat",
    [
        (True, False),
        pytest.param(False, True, marks=pytest.mark.one_backend),
    ],
)
def test_a_network_differentiated_twice(rng, compiled, gated, remat):
    weights = ffn_weights(rng, gated, True)
    activation = ClippedSwiGLU(3.0) if gated else activations.tanh
    function = ffn_function(weights, activation, remat=remat)
    _check(rng, function, compiled, *weights.values())


def test_a_product_differentiated_twice(rng, compiled):
    _check(rng, grouped_matmul, compiled, draw(rng, E, D, 3))


def _check(rng, function, compiled, *weights):
    """Compare with the reference; a group is empty, and rows are left over."""
    arrays = [draw(rng, 8, D), np.int32([3, 0, 2, 1]), *weights]
    found = second_gradients(function, *arrays, compiled=compiled)
    with kernels.use("reference"):
        plain = BACKEND == "jax"  # elsewhere it runs as quickly uncompiled
        expected = second_gradients(function, *arrays, compiled=plain)
    for got, wanted in zip(found, expected, strict=True):
        scale = max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(got / scale, wanted / scale, atol=1e-4)


@pytest.mark.parametrize("formulation", [None, "reference"])
def test_a_gathered_sum_differentiated_twice(rng, formulation):
    """For K = 1, the derivatives follow from the rules for scalars."""
    rows, weights = draw(rng, 6, 1), draw(rng, 6)
    place = rng.permutation(6).astype("int32")
    order = np.argsort(place).astype("int32")

    def function(rows, weights):
        tensors = map(ops.convert_to_tensor, (place, order))
        return kernels.gathered_sum(rows, *tensors, 1, weights)

    with kernels.use(formulation) if formulation else nullcontext():
        d_rows, d_weights = second_gradients(function, rows, weights)
    r, w = rows[place, 0], weights
    y, total = r * w, r**2 + w**2
    # The penalty is sum (r^2 + w^2) cos(r w)^2.
    common = -2 * total * np.cos(y) * np.sin(y)
    expected = np.empty(6)
    expected[place] = 2 * r * np.cos(y) ** 2 + w * common
    np.testing.assert_allclose(d_rows[:, 0], expected, rtol=1e-3, atol=1e-4)
    expected = 2 * w * np.cos(y) ** 2 + r * common
    np.testing.assert_allclose(d_weights, expected, rtol=1e-3, atol=1e-4)


def test_a_linear_map_differentiated_again_is_the_map(rng):
    """A wrong transpose shows which map each derivative uses.

    The first derivative uses the transpose (5). With respect to the upstream
    gradient, its own derivative uses the map (2).
    """
    x = draw(rng, 4)

    def function(x):
        mapped = partial(kernels.linear_map, lambda x: 2 * x, lambda dy: 5 * dy)
        return mapped(x)

    y = 2 * x
    (found,) = second_gradients(function, x)
    # The first derivative is 5 cos(2x). The derivative of that by the cosine
    # is 2, and the cosine's argument has the derivative 5 again.
    expected = 2 * 5 * np.cos(y) * 2 * -np.sin(y) * 5
    np.testing.assert_allclose(found, expected, rtol=1e-4)
