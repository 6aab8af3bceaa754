"""Test the kernels' edge cases, and which formulation is chosen."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy, value_and_gradients
from keras import ops
from kernel_cases import RUNS, D, E, F, ffn_weights

from keras_moe import kernels
from keras_moe.kernels.backend import backend


def test_every_formulation_is_run():
    assert {name for name, _ in RUNS} == set(kernels.formulations())


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
    """Half precision rounds a few more times than float32 on equal inputs."""
    sizes = np.array([5, 0, 9, 2], "int32")
    weights = ffn_weights(rng, gated=True, use_bias=True)
    arrays = [draw(rng, 18, D), *weights.values()]
    arrays = [to_numpy(ops.cast(a, dtype)) for a in arrays]  # equal in both

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
        pytest.skip("on CPU, ragged_dot multiplies by every expert's matrix")
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
    """Doubling the hidden units doubles the outputs of the down projection."""
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


def test_a_formulation_is_chosen_and_can_be_forced(rng, formulation):
    x, kernel = ops.zeros((5, D)), ops.zeros((E, D, F))
    forced = kernels.implementation(x, kernel)
    assert forced is backend.FORMULATIONS[formulation]
    with kernels.use("reference"):
        assert kernels.implementation(x, kernel) is kernels.reference
    assert kernels.implementation(x, kernel) is forced


def test_an_unknown_formulation_cannot_be_forced():
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


class Leaky:
    """A mutable activation without a hash."""

    def __init__(self, slope):
        self.slope = slope

    def __call__(self, x):
        return ops.where(x > 0, x, self.slope * x)

    def __eq__(self, other):
        return True

    __hash__ = None


EAGER = [n for n in kernels.formulations() if "xla" not in n]


@pytest.mark.parametrize("name", EAGER)
def test_a_changed_activation_is_traced_again(rng, name):
    """Both matrices keep a row of -1, so each output is the negated slope."""
    ones = ops.ones((9, 32, 32)) / 32
    weights = kernels.FFNWeights(ones, ones)
    sizes = ops.ones((9,), dtype="int32")
    activation = Leaky(2.0)
    for slope in (2.0, 3.0, 2.0):
        activation.slope = slope
        with kernels.use(name):
            y = kernels.grouped_ffn(
                -ops.ones((9, 32)), weights, sizes, activation
            )
        np.testing.assert_allclose(to_numpy(y), -slope, rtol=1e-5)
        steep = kernels.grouped_ffn(
            -ops.ones((9, 32)),
            weights,
            sizes,
            lambda x: x * slope,  # noqa: B023
        )
        np.testing.assert_allclose(to_numpy(steep), -slope, rtol=1e-5)
