"""Test activations of gated experts that are functions of gate and up.

`test_kernels.py`, `test_quantized_kernels.py`, and `test_second_derivatives.py`
compare them with the reference in every formulation.
"""

import keras
import numpy as np
import pytest
from backend import (
    draw,
    predicted,
    to_numpy,
    upstream,
    value_and_gradients,
)
from keras import ops
from kernel_cases import (
    D,
    E,
    UnitOfAUser,
    ffn_function,
    ffn_weights,
)

from keras_moe import ClippedSwiGLU, GatedUnit, kernels
from keras_moe.kernels.captured import keyed
from keras_moe.kernels.reference import hidden_units

UNITS = {
    "gpt_oss": ClippedSwiGLU(),
    "deepseek_v4": ClippedSwiGLU(10.0, alpha=1.0, up_offset=0.0),
    "another": ClippedSwiGLU(0.8, alpha=0.7, up_offset=-0.4),
}
# Multiples of the limit: values inside, at the limit, and outside.
FACTORS = np.array([-3.0, -1.0, -0.6, 0.0, 0.6, 1.0, 3.0], "float32")


def by_hand(unit, gate, up):
    """Return the hidden units and their derivatives by gate and by up."""
    g = np.minimum(gate, unit.limit)
    u = np.clip(up, -unit.limit, unit.limit) + unit.up_offset
    sigmoid = 1 / (1 + np.exp(-unit.alpha * g))
    slope = sigmoid * (1 + unit.alpha * g * (1 - sigmoid))
    d_gate = np.where(gate <= unit.limit, slope * u, 0)
    d_up = np.where(np.abs(up) <= unit.limit, g * sigmoid, 0)
    return g * sigmoid * u, d_gate, d_up


@pytest.mark.fast
@pytest.mark.parametrize("light", [False, True], ids=["definition", "light"])
@pytest.mark.parametrize("name", UNITS)
def test_values_and_derivatives_by_hand(name, light):
    """At a limit, the derivative is that of the values inside."""
    unit = UNITS[name]
    function = kernels.light_activation(unit) if light else unit
    gate, up = np.stack(np.meshgrid(FACTORS, FACTORS)) * unit.limit
    hidden, d_gate, d_up = by_hand(unit, gate, up)
    weights = upstream(gate.shape)
    expected = [hidden, d_gate * weights, d_up * weights]
    got, gradients = value_and_gradients(function, gate, up)
    found = predicted(function)(gate, up)
    for one, other in zip([got, *gradients], expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(rng, dtype):
    """Each operation rounds once, and no value leaves the range of numbers."""
    unit = UNITS["gpt_oss"]
    gate, up = (9 * draw(rng, 8, 9) for _ in range(2))
    gate, up = (to_numpy(ops.cast(x, dtype)) for x in (gate, up))
    hidden, d_gate, d_up = by_hand(unit, gate, up)
    weights = upstream(gate.shape)

    def run(gate, up):
        gate, up = ops.cast(gate, dtype), ops.cast(up, dtype)
        y = kernels.light_activation(unit)(gate, up)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        return y

    y, gradients = value_and_gradients(run, gate, up)
    relative = {"bfloat16": 0.03, "float16": 0.004}[dtype]
    for got, want in zip(
        [y, *gradients], [hidden, d_gate * weights, d_up * weights], strict=True
    ):
        assert np.abs(got - want).max() <= relative * np.abs(want).max()


@pytest.mark.parametrize("form", ["stacked", "dense", "dropout"])
def test_other_forms_of_the_network(rng, form):
    """Each equals the reference, as a function of x and of the weights."""
    weights = ffn_weights(rng, True, True, 1 if form == "dense" else E)
    sizes = np.int32([3] * len(weights["up_kernel"]))

    def run(x, *slices):
        named = dict(zip(weights, slices, strict=True))
        if form == "dense":
            named = {name: value[0] for name, value in named.items()}
            own = kernels.FFNWeights(**named)
            return kernels.ffn(x, own, UNITS["another"])
        own = kernels.FFNWeights(**named)
        if form == "stacked":
            rows = ops.reshape(x, (-1, 3, D))
            y = kernels.stacked_ffn(rows, own, UNITS["another"])
            return ops.reshape(y, (-1, D))
        return kernels.grouped_ffn(
            x, own, sizes, UNITS["another"], dropout=lambda hidden: 2 * hidden
        )

    def expected(x, *slices):
        y = ffn_function(weights, UNITS["another"])(x, sizes, *slices)
        if form == "dropout":  # the bias is not doubled
            bias = slices[list(weights).index("down_bias")]
            y = 2 * y - ops.repeat(bias, 3, axis=0)
        return y

    arrays = [draw(rng, sizes.sum(), D), *weights.values()]
    got = value_and_gradients(run, *arrays)
    with kernels.use("reference"):
        wanted = value_and_gradients(expected, *arrays)
    for one, other in zip(
        [got[0], *got[1]], [wanted[0], *wanted[1]], strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_units_are_keys_of_traced_functions():
    """Equal numbers share a trace, and others do not; a key is still a unit."""
    assert keyed(ClippedSwiGLU(5)) == keyed(ClippedSwiGLU(5.0))
    assert keyed(ClippedSwiGLU(5)) != keyed(ClippedSwiGLU(6))
    one, other = keyed(UnitOfAUser(0.5)), keyed(UnitOfAUser(0.7))
    assert one != other
    gate, up = np.ones((2, 1, 3), "float32") * [[[2]], [[0.1]]]
    gate, up = np.float32(gate), np.float32(up + [0, 1, 2])
    y = hidden_units(one, ops.convert_to_tensor(up), gate)
    np.testing.assert_allclose(to_numpy(y), [[-0.25, 0, 0.25]], atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "name, value",
    [
        ("limit", 0),
        ("limit", None),
        ("limit", float("inf")),
        ("alpha", -1.0),
        ("alpha", "silu"),
        ("up_offset", float("nan")),
        ("up_offset", None),
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number"):
        ClippedSwiGLU(**{name: value})


@pytest.mark.one_backend
def test_a_unit_without_a_function():
    with pytest.raises(NotImplementedError, match="must be implemented"):
        GatedUnit()(1.0, 2.0)
