"""Test kernels of 8 and 4 bits by hand and against the reference.

E is the number of groups, D the input width, and F the output width.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy, value_and_gradients
from keras import ops
from kernel_cases import D, E, F

from keras_moe import ClippedSwiGLU, kernels
from keras_moe.kernels import QuantizedKernel, Rounding

COMPILED = {
    "jax": [True],
    "tensorflow": [False, True, "xla"],
    "torch": [False],
}[BACKEND]
KINDS = {  # bits, rows of a block
    "int8": (8, None),
    "int4": (4, None),
    "int4 in blocks": (4, 4),
}
GROUPS = {
    "random": [3, 1, 5, 2],
    "some empty": [0, 0, 11, 0],
    "all empty": [0, 0, 0, 0],
}


def draw_kernel(rng, depth, width, kind, round_rows):
    """Return a kernel and its dense matrices `(E, depth, width)`."""
    bits, block = KINDS[kind]
    most = 2 ** (bits - 1)
    integers = rng.integers(-most, most, (E, depth, width))
    blocks = 1 if block is None else -(-depth // block)
    scale = rng.uniform(0.5, 1.5, (E, blocks, width)).astype("float32") / most
    each = np.repeat(scale, block or depth, axis=1)[:, :depth]
    values = integers.astype("int8")
    if bits == 4:
        half = -(-depth // 2)
        padded = np.zeros((E, 2 * half, width), int)
        padded[:, :depth] = integers
        low, high = padded[:, :half] + 8, padded[:, half:] + 8
        values = (low + 16 * high).astype("uint8")
    rounding = Rounding() if round_rows else None
    kernel = QuantizedKernel(
        ops.convert_to_tensor(values),
        ops.convert_to_tensor(scale),
        rounding,
        block,
    )
    return kernel, (integers * each).astype("float32")


def rounded(rows):
    """Round each row to 127 steps of its largest element."""
    steps = 127 / (np.abs(rows).max(-1, keepdims=True) + 1e-7)
    return np.round(rows * steps) / steps


@pytest.mark.fast
@pytest.mark.parametrize("depth", [D, 7])
@pytest.mark.parametrize("round_rows", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_by_hand(rng, kind, round_rows, depth):
    sizes = np.array([3, 0, 5, 1], "int32")
    kernel, matrices = draw_kernel(rng, depth, F, kind, round_rows)
    x = draw(rng, 11, depth)
    rows = rounded(x) if round_rows else x
    expected = np.zeros((11, F))
    expected[:3] = rows[:3] @ matrices[0]
    expected[3:8] = rows[3:8] @ matrices[2]
    expected[8:9] = rows[8:9] @ matrices[3]

    y = kernels.grouped_matmul(x, kernel, sizes)

    np.testing.assert_allclose(to_numpy(y), expected, atol=1e-4)


def test_the_gradient_ignores_the_rounding_of_rows(rng):
    sizes = np.array([3, 0, 5, 2], "int32")
    kernel, matrices = draw_kernel(rng, D, F, "int8", True)

    def function(x):
        return kernels.grouped_matmul(x, kernel, sizes)

    def exact(x):
        return kernels.grouped_matmul(x, matrices, sizes)

    x = draw(rng, 10, D)
    _, (dx,) = value_and_gradients(function, x)
    _, (expected,) = value_and_gradients(exact, x)
    np.testing.assert_allclose(dx, expected, atol=1e-4)


@pytest.mark.parametrize(
    "kind, round_rows, gated",
    [
        ("int8", False, True),
        ("int8", True, False),
        ("int4", True, True),
        ("int4 in blocks", False, False),
    ],
)
@pytest.mark.parametrize("compiled", COMPILED)
def test_the_ffn_equals_the_reference(rng, kind, round_rows, gated, compiled):
    """Values and gradients, of the rows and of the biases, agree."""
    for number, sizes in enumerate(GROUPS.values()):
        sizes = np.array(sizes, "int32")
        if compiled and number:  # only the first case is compiled
            break
        assert_equals_reference(rng, kind, round_rows, gated, compiled, sizes)


def assert_equals_reference(rng, kind, round_rows, gated, compiled, sizes):
    weights = {
        "up_kernel": draw_kernel(rng, D, F, kind, round_rows)[0],
        "down_kernel": draw_kernel(rng, F, D, kind, round_rows)[0],
    }
    activation = keras.activations.silu
    if gated:
        weights["gate_kernel"] = draw_kernel(rng, D, F, kind, round_rows)[0]
        activation = ClippedSwiGLU(1.5)

    def function(x, *biases):
        names = ("up_bias", "down_bias", "gate_bias")
        biases = dict(zip(names, biases, strict=False))
        return kernels.grouped_ffn(
            x,
            kernels.FFNWeights(**weights, **biases),
            ops.convert_to_tensor(sizes),
            activation,
        )

    arrays = [draw(rng, sizes.sum() + 2, D), draw(rng, E, F), draw(rng, E, D)]
    arrays += [draw(rng, E, F)] * gated
    got = value_and_gradients(function, *arrays, compiled=compiled)
    with kernels.use("reference"):
        want = value_and_gradients(function, *arrays)
    # If rows are rounded, a last bit may round the other way.
    atol = 0.05 if round_rows else 1e-4
    np.testing.assert_allclose(got[0], want[0], atol=atol)
    for mine, others in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(mine, others, atol=atol)


@pytest.mark.parametrize("kind", ["int8", "int4 in blocks"])
def test_a_stack_is_equal_groups(rng, kind):
    weights = kernels.FFNWeights(
        up_kernel=draw_kernel(rng, D, F, kind, False)[0],
        down_kernel=draw_kernel(rng, F, D, kind, False)[0],
    )
    x = draw(rng, 1, 3, D)
    y = kernels.stacked_ffn(x, weights, keras.activations.silu)
    rows = np.broadcast_to(x, (E, 3, D)).reshape(-1, D)
    with kernels.use("reference"):
        expected = kernels.grouped_ffn(
            rows, weights, np.full(E, 3), keras.activations.silu
        )
    expected = to_numpy(expected).reshape(E, 3, D)
    np.testing.assert_allclose(to_numpy(y), expected, atol=1e-4)


def test_half_precision(rng):
    kernel, matrices = draw_kernel(rng, D, F, "int8", False)
    x = ops.cast(draw(rng, 10, D), "bfloat16")
    sizes = np.array([3, 0, 5, 2], "int32")
    y = kernels.grouped_matmul(x, kernel, sizes)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    expected = kernels.grouped_matmul(ops.cast(x, "float32"), matrices, sizes)
    np.testing.assert_allclose(
        to_numpy(ops.cast(y, "float32")), to_numpy(expected), atol=0.1, rtol=0.1
    )


def test_operands_that_do_not_fit(rng):
    kernel, _ = draw_kernel(rng, D + 2, F, "int4", False)
    with pytest.raises(ValueError, match="`x` must be"):
        kernels.grouped_matmul(draw(rng, 3, D), kernel, np.ones(E, "int32"))


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's formulation")
@pytest.mark.parametrize("round_rows", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_formulation_of_exports_gives_equal_products(rng, kind, round_rows):
    kernel, _ = draw_kernel(rng, D, F, kind, round_rows)
    x, sizes = draw(rng, 11, D), np.array([3, 0, 5, 1], "int32")
    expected = kernels.grouped_matmul(x, kernel, sizes)
    with kernels.use("torch_unrolled"):
        y = kernels.grouped_matmul(x, kernel, sizes)
    np.testing.assert_allclose(to_numpy(y), to_numpy(expected), atol=1e-5)
