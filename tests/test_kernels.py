"""The backend's kernels against the reference: values and every gradient."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy, value_and_gradients
from keras import ops

from keras_moe import kernels

E, D, F = 4, 6, 10
GROUPS = {
    "random": [3, 1, 5, 2],
    "some empty": [3, 0, 8, 0],
    "all empty": [0, 0, 0, 0],
    "one takes all": [0, 0, 11, 0],
    "skewed": [1, 8, 1, 1],
}
RUNS = {  # a formulation, and `compiled` of value_and_gradients
    "jax": [(name, True) for name in kernels.formulations()],
    "tensorflow": [
        ("tensorflow_loop", False),
        ("tensorflow_loop", True),
        ("tensorflow_split", False),
        ("tensorflow_split", True),
        ("tensorflow_xla", "xla"),
    ],
    "torch": [(name, False) for name in kernels.formulations()],
}[BACKEND]


def test_every_formulation_is_run():
    assert {name for name, _ in RUNS} == set(kernels.formulations())


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def formulation(request):
    """Forces each formulation in turn; yields its name."""
    with kernels.use(request.param[0]):
        yield request.param[0]


@pytest.fixture
def compiled(request, formulation):
    """How the formulation is run."""
    return request.node.callspec.params["formulation"][1]


def ffn_weights(rng, gated, use_bias, num_experts=E):
    """Arrays in the order of FFNWeights' fields; absent ones left out."""
    E = num_experts
    shapes = {"up_kernel": (E, D, F), "down_kernel": (E, F, D)}
    if use_bias:
        shapes |= {"up_bias": (E, F), "down_bias": (E, D)}
    if gated:
        shapes |= {"gate_kernel": (E, D, F)}
    if gated and use_bias:
        shapes |= {"gate_bias": (E, F)}
    return {name: draw(rng, *shape) for name, shape in shapes.items()}


def compare(function, arrays, compiled, atol=1e-4):
    values, gradients = value_and_gradients(
        function, *arrays, compiled=compiled
    )
    with kernels.use("reference"):
        wanted, wanted_gradients = value_and_gradients(function, *arrays)
    np.testing.assert_allclose(values, wanted, atol=atol)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=atol)


@pytest.mark.parametrize("spare_rows", [0, 3])
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_grouped_matmul_equals_reference(rng, sizes, spare_rows, compiled):
    sizes = np.array(sizes, "int32")
    x = draw(rng, sizes.sum() + spare_rows, D)

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    compare(function, [x, draw(rng, E, D, F)], compiled)


def ffn_function(names, sizes, activation=keras.activations.gelu, **options):
    """`grouped_ffn` as a function of arrays, the weights in order of names."""

    def function(x, *slices):
        named = dict(zip(names, slices, strict=True))
        return kernels.grouped_ffn(
            x,
            kernels.FFNWeights(**named),
            ops.convert_to_tensor(sizes),
            activation,
            **options,
        )

    return function


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("sizes", GROUPS.values(), ids=GROUPS)
def test_grouped_ffn_equals_reference(rng, sizes, gated, use_bias, compiled):
    sizes = np.array(sizes, "int32")
    weights = ffn_weights(rng, gated, use_bias)
    x = draw(rng, sizes.sum() + 2, D)
    function = ffn_function(weights, sizes)

    compare(function, [x, *weights.values()], compiled)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sizes", [[3, 1, 5, 2], [0, 0, 11, 0], [0, 0, 0, 0]])
def test_remat_changes_no_value(rng, sizes, gated, compiled):
    sizes = np.array(sizes, "int32")
    weights = ffn_weights(rng, gated, use_bias=True)
    x = draw(rng, sizes.sum() + 2, D)
    function = ffn_function(weights, sizes, keras.activations.silu, remat=True)
    compare(function, [x, *weights.values()], compiled)


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
    hidden = [s for s in shapes if s[-1:] == (F,) and s[0] >= 11]
    assert bool(hidden) is not remat


@pytest.mark.parametrize("rows", [300, 1000])
def test_many_rows_and_uneven_groups(rng, rows, compiled):
    """More rows than a block holds, groups that end anywhere in a block."""
    cuts = np.sort(rng.integers(0, rows, size=6))
    sizes = np.diff([0, *cuts, rows - 7]).clip(0).astype("int32")
    x, kernel = draw(rng, rows, D), draw(rng, len(sizes), D, F)

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    compare(function, [x, kernel], compiled, atol=1e-3)


def test_every_size_of_block_and_groups_of_many_blocks(rng, compiled):
    """Groups around each share of P / E = 50 there is a block size for."""
    sizes = np.array([20, 26, 40, 46, 53, 59, 66, 90], "int32")
    weights = ffn_weights(rng, True, False, num_experts=8)
    x = draw(rng, 400, D)
    compare(
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


def test_no_rows(rng, compiled):
    sizes = np.zeros(E, "int32")

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    y, (dx, dkernel) = value_and_gradients(
        function, draw(rng, 0, D), draw(rng, E, D, F), compiled=compiled
    )
    assert y.shape == (0, F)
    assert dx.shape == (0, D)
    np.testing.assert_array_equal(dkernel, np.zeros((E, D, F)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(rng, dtype, compiled):
    """Rounded once where the float32 values are rounded a few times."""
    sizes = np.array([5, 0, 9, 2], "int32")
    weights = ffn_weights(rng, gated=True, use_bias=True)
    arrays = [draw(rng, 18, D), *weights.values()]
    arrays = [to_numpy(ops.cast(a, dtype)) for a in arrays]  # round them once

    def run(dtype):
        def function(x, *slices):
            cast = [ops.cast(t, dtype) for t in (x, *slices)]
            named = dict(zip(weights, cast[1:], strict=True))
            y = kernels.grouped_ffn(
                cast[0],
                kernels.FFNWeights(**named),
                ops.convert_to_tensor(sizes),
                keras.activations.relu,
            )
            assert keras.backend.standardize_dtype(y.dtype) == dtype
            return y

        return value_and_gradients(function, *arrays, compiled=compiled)

    values, gradients = run(dtype)
    wanted, wanted_gradients = run("float32")
    relative = {"bfloat16": 0.05, "float16": 0.01}[dtype]
    for got, want in zip(
        [values, *gradients], [wanted, *wanted_gradients], strict=True
    ):
        assert np.abs(got - want).max() <= relative * np.abs(want).max()


def test_only_the_kernels_of_non_empty_groups_matter(
    rng, formulation, compiled
):
    """NaN weights of experts without rows reach neither value nor gradient."""
    if formulation == "jax_ragged_dot":
        pytest.skip("on CPU ragged_dot multiplies by every expert's matrix")
    sizes = np.array([3, 0, 2, 0], "int32")
    kernel = draw(rng, E, D, F)
    kernel[[1, 3]] = np.nan

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    y, (dx, dkernel) = value_and_gradients(
        function, draw(rng, 6, D), kernel, compiled=compiled
    )
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dkernel[[1, 3]], np.zeros((2, D, F)))


def test_nan_stays_in_its_row(rng, compiled):
    sizes = np.array([3, 1, 5, 2], "int32")
    x = draw(rng, 11, D)
    x[4] = np.nan

    def function(x, kernel):
        return kernels.grouped_matmul(x, kernel, ops.convert_to_tensor(sizes))

    y, (dx, dkernel) = value_and_gradients(
        function, x, draw(rng, E, D, F), compiled=compiled
    )
    assert np.isnan(y[4]).all()
    assert np.isfinite(np.delete(y, 4, axis=0)).all()
    assert np.isfinite(dx).all()
    assert np.isfinite(dkernel[[0, 1, 3]]).all()


def test_dropout_runs_on_the_hidden_rows(rng):
    """With hidden units doubled, so is what `down` makes of them."""
    sizes = np.array([3, 1, 5, 2], "int32")
    weights = kernels.FFNWeights(**ffn_weights(rng, True, use_bias=False))
    x = draw(rng, 11, D)
    silu = keras.activations.silu
    plain = kernels.grouped_ffn(x, weights, sizes, silu)
    doubled = kernels.grouped_ffn(
        x, weights, sizes, silu, dropout=lambda hidden: hidden * 2
    )
    np.testing.assert_allclose(
        to_numpy(doubled), 2 * to_numpy(plain), rtol=1e-4, atol=1e-4
    )


def test_a_formulation_is_picked_and_can_be_forced(rng, formulation):
    x, kernel = ops.zeros((5, D)), ops.zeros((E, D, F))
    forced = kernels.implementation(x, kernel)
    assert forced.__name__ == f"keras_moe.kernels.{formulation}"
    with kernels.use("reference"):
        assert kernels.implementation(x, kernel) is kernels.reference
    assert kernels.implementation(x, kernel) is forced


def test_another_backend_cannot_be_forced():
    with pytest.raises(ValueError, match="`name` must be one of"):
        with kernels.use("mxnet"):
            pass


@pytest.mark.parametrize(
    "x, kernel",
    [
        (np.zeros((5, D + 1), "float32"), np.zeros((E, D, F), "float32")),
        (np.zeros((5, D), "float32"), np.zeros((E + 1, D, F), "float32")),
        (np.zeros((2, 5, D), "float32"), np.zeros((E, D, F), "float32")),
        (np.zeros((5, D), "float16"), np.zeros((E, D, F), "float32")),
    ],
    ids=["width", "experts", "rank", "dtype"],
)
def test_operands_that_do_not_fit(x, kernel):
    with pytest.raises(ValueError, match="Received: x of shape"):
        kernels.grouped_matmul(x, kernel, np.zeros(E, "int32"))


def test_group_sizes_count_each_expert_and_skip_index_e():
    sizes = kernels.group_sizes_of(np.array([2, 0, 2, 3, 3, 2], "int32"), 3)
    np.testing.assert_array_equal(to_numpy(sizes), [1, 0, 3])
