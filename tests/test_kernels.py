"""The backend's kernels against the reference: values and every gradient."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy, value_and_gradients
from keras import ops
from kernel_cases import (
    D,
    E,
    F,
    assert_equals_reference,
    ffn_function,
    ffn_weights,
)

from keras_moe import kernels

GROUPS = {
    "random": [3, 1, 5, 2],
    "some empty": [3, 0, 8, 0],
    "all empty": [0, 0, 0, 0],
    "one takes all": [0, 0, 11, 0],
    "skewed": [1, 8, 1, 1],
}


@pytest.mark.parametrize("spare_rows", [0, 3])
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_grouped_matmul_equals_reference(rng, sizes, spare_rows, compiled):
    sizes = np.array(sizes, "int32")
    x = draw(rng, sizes.sum() + spare_rows, D)

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    assert_equals_reference(function, [x, draw(rng, E, D, F)], compiled)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_grouped_ffn_equals_reference(rng, sizes, gated, use_bias, compiled):
    sizes = np.array(sizes, "int32")
    weights = ffn_weights(rng, gated, use_bias)
    x = draw(rng, sizes.sum() + 2, D)
    function = ffn_function(weights, sizes)

    assert_equals_reference(function, [x, *weights.values()], compiled)


@pytest.mark.parametrize("remat", [False, True])
def test_outputs_of_another_width(rng, remat, compiled):
    sizes = np.array([3, 0, 5, 2], "int32")
    weights = ffn_weights(rng, gated=True, use_bias=True)
    weights["down_kernel"] = draw(rng, E, F, D + 3)
    weights["down_bias"] = draw(rng, E, D + 3)
    function = ffn_function(weights, sizes, remat=remat)
    assert_equals_reference(
        function, [draw(rng, 12, D), *weights.values()], compiled
    )


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_stack_is_equal_groups(rng, gated, use_bias):
    """Values and every gradient; rows of each expert, or one for all."""
    weights = ffn_weights(rng, gated, use_bias)
    sizes = np.full(E, 3, "int32")

    def stacked(x, *slices):
        named = dict(zip(weights, slices, strict=True))
        y = kernels.stacked_ffn(
            x, kernels.FFNWeights(**named), keras.activations.gelu
        )
        return ops.reshape(y, (-1, D))

    def grouped(x, *slices):
        rows = ops.reshape(ops.broadcast_to(x, (E, 3, D)), (-1, D))
        return ffn_function(weights, sizes)(rows, *slices)

    for shape in ((E, 3, D), (1, 3, D)):
        arrays = [draw(rng, *shape), *weights.values()]
        with kernels.use("reference"):
            y, gradients = value_and_gradients(grouped, *arrays)
        mine, others = value_and_gradients(stacked, *arrays)
        np.testing.assert_allclose(mine, y, rtol=1e-4, atol=1e-4)
        for one, other in zip(others, gradients, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", [[3, 1, 5, 2], [0, 0, 11, 0], [0, 0, 0, 0]])
def test_remat_changes_no_value(rng, sizes, gated, compiled):
    sizes = np.array(sizes, "int32")
    weights = ffn_weights(rng, gated, use_bias=True)
    x = draw(rng, sizes.sum() + 2, D)
    function = ffn_function(weights, sizes, keras.activations.silu, remat=True)
    assert_equals_reference(function, [x, *weights.values()], compiled)


def kept_shapes(function, arrays):
    """Shapes of what the forward pass keeps for the backward pass."""
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
    BACKEND == "tensorflow", reason="a graph does not tell what it keeps"
)
@pytest.mark.parametrize("remat", [False, True])
def test_remat_keeps_no_hidden_rows(rng, formulation, remat):
    sizes = np.array([3, 1, 5, 2], "int32")
    weights = ffn_weights(rng, gated=True, use_bias=True)
    silu = keras.activations.silu
    function = ffn_function(weights, sizes, silu, remat=remat)
    shapes = kept_shapes(function, [draw(rng, 11, D), *weights.values()])
    whole = [s for s in shapes if s[-1:] == (F,) and s[0] >= 11]
    parts = [(size, F) for size in sizes if (size, F) in shapes]
    assert bool(whole or parts) is not remat


@pytest.mark.parametrize("rows", [300, 1000])
def test_many_rows_and_uneven_groups(rng, rows, compiled):
    """More rows than a block holds, groups that end anywhere in a block."""
    cuts = np.sort(rng.integers(0, rows, size=6))
    sizes = np.diff([0, *cuts, rows - 7]).clip(0).astype("int32")
    x, kernel = draw(rng, rows, D), draw(rng, len(sizes), D, F)

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    assert_equals_reference(function, [x, kernel], compiled, atol=1e-3)


def test_every_size_of_block_and_groups_of_many_blocks(rng, compiled):
    """Groups around each share of P / E = 50 there is a block size for."""
    sizes = np.array([20, 26, 40, 46, 53, 59, 66, 90], "int32")
    weights = ffn_weights(rng, True, False, num_experts=8)
    x = draw(rng, 400, D)
    assert_equals_reference(
        ffn_function(weights, sizes),
        [x, *weights.values()],
        compiled,
        atol=1e-3,
    )


def test_reference_is_the_definition(rng):
    """Row p of group e is x[p] @ kernel[e]; by NumPy, row for row."""
    x, kernel = draw(rng, 6, D), draw(rng, 3, D, F)
    with kernels.use("reference"):
        y = kernels.grouped_matmul(x, kernel, np.array([2, 0, 3], "int32"))
    wanted = [x[p] @ kernel[e] for p, e in enumerate([0, 0, 2, 2, 2])]
    wanted.append(np.zeros(F))
    np.testing.assert_allclose(to_numpy(y), np.stack(wanted), atol=1e-5)
