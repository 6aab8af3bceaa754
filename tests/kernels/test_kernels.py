"""Compare the backend's kernels with the reference: values and gradients."""

import keras
import numpy as np
import pytest
from backend import (
    BACKEND,
    draw,
    predicted,
    to_numpy,
    value_and_gradients,
)
from keras import ops
from kernel_cases import (
    D,
    E,
    F,
    UnitOfAUser,
    assert_equals_reference,
    ffn_function,
    ffn_weights,
    grouped_matmul,
)

from keras_moe import ClippedSwiGLU, kernels

GROUPS = [
    [3, 1, 5, 2],
    [3, 0, 8, 0],
    [0, 0, 11, 0],
    [1, 8, 1, 1],
    [0, 0, 0, 0],
]


@pytest.mark.fast
@pytest.mark.parametrize("spare_rows", [0, 3])
def test_grouped_matmul_equals_reference(rng, spare_rows, compiled):
    cases = [
        [draw(rng, sum(g) + spare_rows, D), np.int32(g), draw(rng, E, D, F)]
        for g in GROUPS
    ]
    assert_equals_reference(grouped_matmul, compiled, *cases)


@pytest.mark.fast
# `test_any_activation` differentiates the fourth combination.
@pytest.mark.parametrize(
    "gated, use_bias", [(False, False), (True, False), (True, True)]
)
def test_grouped_ffn_equals_reference(rng, gated, use_bias, compiled):
    weights = ffn_weights(rng, gated, use_bias)
    cases = [[draw(rng, 13, D), np.int32(g), *weights.values()] for g in GROUPS]
    assert_equals_reference(ffn_function(weights), compiled, *cases)


@pytest.mark.parametrize("gated, use_bias", [(False, True), (True, False)])
def test_values_without_gradients(rng, gated, use_bias, compiled):
    """Some formulations use other products if no gradient is needed."""
    weights = ffn_weights(rng, gated, use_bias)
    activation = ClippedSwiGLU(1.5) if gated else keras.activations.gelu
    function = ffn_function(weights, activation)
    run, plain = predicted(function, compiled), predicted(function)
    for sizes in GROUPS:
        arrays = [draw(rng, 13, D), np.int32(sizes), *weights.values()]
        got = run(*arrays)
        with kernels.use("reference"):
            expected = plain(*arrays)
        np.testing.assert_allclose(got, expected, atol=1e-4, err_msg=f"{sizes}")


def test_many_rows_and_wide_matrices(rng, compiled):
    """Rows and widths exceed what some formulations process at once."""
    sizes = np.int32([1030, 0, 40, 5])
    weights = {
        "up_kernel": draw(rng, E, D, 512),
        "down_kernel": draw(rng, E, 512, D) / 512,
        "up_bias": draw(rng, E, 512),
        "gate_kernel": draw(rng, E, D, 512),
    }
    used = sizes.sum()
    arrays = [draw(rng, used + 2, D), sizes, *weights.values()]
    function = ffn_function(weights)
    got = predicted(function, compiled)(*arrays)
    with kernels.use("reference"):
        expected = predicted(function)(*arrays)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    x, kernel = arrays[0], weights["up_kernel"]
    owners = np.repeat(np.arange(E), sizes)
    np.testing.assert_allclose(
        predicted(grouped_matmul, compiled)(x, sizes, kernel)[:used],
        np.einsum("pd,pdf->pf", x[:used], kernel[owners]),
        atol=1e-4,
    )


@pytest.mark.parametrize("depth", [1, 8, 19])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_without_gradients(rng, depth, dtype, compiled):
    """Sum fewer rows of a matrix than a kernel sums at once, as many, and more.

    The products of these numbers are exact, except that TensorFlow rounds
    products in bfloat16 twice.
    """

    def function(x, sizes, kernel):
        x, kernel = ops.cast(x, dtype), ops.cast(kernel, dtype)
        return ops.cast(grouped_matmul(x, sizes, kernel), "float32")

    run = predicted(function, compiled)
    kernel = np.round(draw(rng, E, depth, F) * 8) / 8
    for sizes in GROUPS:
        x = np.round(draw(rng, 11, depth) * 8) / 8
        owners = np.repeat(np.arange(E), sizes)
        expected = np.zeros((11, F), "float32")
        pairs = zip(x, kernel[owners], strict=False)
        for row, (token, matrix) in enumerate(pairs):
            expected[row] = token @ matrix
        tolerance = {"float32": 1e-5, "bfloat16": 2.0**-7}[dtype]
        np.testing.assert_allclose(
            run(x, np.int32(sizes), kernel),
            expected,
            rtol=tolerance,
            atol=tolerance,
        )


ACTIVATIONS = {
    "elementwise": keras.activations.relu,
    "along rows": keras.activations.softmax,
    "a user's own": lambda x: x - ops.mean(x, axis=-1, keepdims=True),
    "a user's unit": UnitOfAUser(),
}
FEW, MANY = [3, 0, 5, 3], [97, 0, 130, 3]  # rows per expert


# The cases cover every pair of the arguments' values, not every triple.
@pytest.mark.parametrize(
    "activation, gated, sizes",
    [
        ("elementwise", False, FEW),
        ("along rows", True, FEW),
        ("a user's unit", True, MANY),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in (
                ("elementwise", True, MANY),
                ("along rows", False, MANY),
                ("a user's own", True, MANY),
                ("a user's unit", True, FEW),
                ("a user's own", False, FEW),
            )
        ),
    ],
)
def test_any_activation(rng, activation, gated, sizes, compiled):
    """The activation gets one row at a time, in any layout of hidden units."""
    weights = ffn_weights(rng, gated, use_bias=True)
    x = draw(rng, sum(sizes), D) / sum(sizes)
    function = ffn_function(weights, ACTIVATIONS[activation])
    assert_equals_reference(
        function, compiled, [x, np.int32(sizes), *weights.values()]
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's formulation")
def test_a_gradient_penalty(rng):
    """The gradient of a gradient's norm equals the reference's."""
    import tensorflow as tf

    weights = ffn_weights(rng, gated=True, use_bias=True)
    function = ffn_function(weights, keras.activations.silu)
    x, sizes = tf.constant(draw(rng, 11, D)), tf.constant([3, 0, 5, 3])
    slices = [tf.constant(w) for w in weights.values()]

    def penalty():
        with tf.GradientTape() as outer:
            outer.watch([x, *slices])
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(function(x, sizes, *slices) ** 2)
            norm = tf.reduce_sum(inner.gradient(y, x) ** 2)
        return outer.gradient(norm, [x, *slices[:3]])

    with kernels.use("tensorflow_split"):
        found = tf.function(penalty)()
    with kernels.use("reference"):
        wanted = penalty()
    for got, want in zip(found, wanted, strict=True):
        got, want = (tf.convert_to_tensor(g).numpy() for g in (got, want))
        largest = np.abs(want).max()
        np.testing.assert_allclose(got / largest, want / largest, atol=1e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_outputs_of_another_width(rng, remat, compiled):
    """The activation needs gate and up, and clips both."""
    weights = ffn_weights(rng, gated=True, use_bias=True)
    weights["down_kernel"] = draw(rng, E, F, D + 3)
    weights["down_bias"] = draw(rng, E, D + 3)
    arrays = [draw(rng, 12, D), np.int32([3, 0, 5, 2]), *weights.values()]
    function = ffn_function(weights, ClippedSwiGLU(1.5), remat=remat)
    assert_equals_reference(function, compiled, arrays)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_stack_is_equal_groups(rng, gated, use_bias):
    """Values and gradients agree for rows per expert and for shared rows."""
    weights = ffn_weights(rng, gated, use_bias)
    sizes = ops.full((E,), 3, "int32")

    def stacked(x, *slices):
        named = dict(zip(weights, slices, strict=True))
        y = kernels.stacked_ffn(
            x, kernels.FFNWeights(**named), keras.activations.gelu
        )
        return ops.reshape(y, (-1, D))

    def grouped(x, *slices):
        rows = ops.reshape(ops.broadcast_to(x, (E, 3, D)), (-1, D))
        return ffn_function(weights)(rows, sizes, *slices)

    for shape in ((E, 3, D), (1, 3, D)):
        arrays = [draw(rng, *shape), *weights.values()]
        with kernels.use("reference"):
            y, gradients = value_and_gradients(grouped, *arrays)
        mine, others = value_and_gradients(stacked, *arrays)
        np.testing.assert_allclose(mine, y, rtol=1e-4, atol=1e-4)
        for one, other in zip(others, gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_remat_changes_no_value(rng, compiled):
    """The weights have no gate; `test_outputs_of_another_width` has one."""
    weights = ffn_weights(rng, gated=False, use_bias=True)
    cases = [[draw(rng, 13, D), np.int32(g), *weights.values()] for g in GROUPS]
    function = ffn_function(weights, keras.activations.silu, remat=True)
    assert_equals_reference(function, compiled, *cases)


def kept_shapes(function, arrays):
    """Return the shapes that the forward pass keeps for the backward pass."""
    if BACKEND == "jax":
        import jax

        _, vjp = jax.vjp(function, *arrays)
        return [leaf.shape for leaf in jax.tree.leaves(vjp)]
    import torch

    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        function(*tensors)
    return shapes


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="a graph does not list what it keeps"
)
@pytest.mark.parametrize("remat", [False, True])
def test_remat_keeps_no_hidden_rows(rng, formulation, remat):
    sizes = np.array([3, 1, 5, 2], "int32")
    weights = ffn_weights(rng, gated=True, use_bias=True)
    silu = keras.activations.silu
    ffn = ffn_function(weights, silu, remat=remat)

    def function(x, *slices):
        return ffn(x, ops.convert_to_tensor(sizes), *slices)

    shapes = kept_shapes(function, [draw(rng, 11, D), *weights.values()])
    whole = [s for s in shapes if s[-1:] == (F,) and s[0] >= 11]
    parts = [(size, F) for size in sizes if (size, F) in shapes]
    assert bool(whole or parts) is not remat


@pytest.mark.parametrize("rows", [300, 1000])
def test_many_rows_and_uneven_groups(rng, rows, compiled):
    """The rows exceed one block, and groups end anywhere in a block."""
    cuts = np.sort(rng.integers(0, rows, size=6))
    sizes = np.diff([0, *cuts, rows - 7]).clip(0).astype("int32")
    x, kernel = draw(rng, rows, D), draw(rng, len(sizes), D, F)

    assert_equals_reference(
        grouped_matmul, compiled, [x, sizes, kernel], atol=1e-3
    )


def test_every_size_of_block_and_groups_of_many_blocks(rng, compiled):
    """Group sizes surround each share of P / E = 50 that has a block size."""
    sizes = np.array([20, 26, 40, 46, 53, 59, 66, 90], "int32")
    weights = ffn_weights(rng, True, False, num_experts=8)
    arrays = [draw(rng, 400, D), sizes, *weights.values()]
    unit = ClippedSwiGLU(2.0, alpha=1.0, up_offset=0.0)
    function = ffn_function(weights, unit)
    assert_equals_reference(function, compiled, arrays, atol=1e-3)


@pytest.mark.fast
def test_reference_is_the_definition(rng):
    """Row p of group e is `x[p] @ kernel[e]`, as NumPy computes row by row."""
    x, kernel = draw(rng, 6, D), draw(rng, 3, D, F)
    with kernels.use("reference"):
        y = kernels.grouped_matmul(x, kernel, np.array([2, 0, 3], "int32"))
    wanted = [x[p] @ kernel[e] for p, e in enumerate([0, 0, 2, 2, 2])]
    wanted.append(np.zeros(F))
    np.testing.assert_allclose(to_numpy(y), np.stack(wanted), atol=1e-5)
