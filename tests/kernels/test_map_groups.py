"""`kernels.map_groups` passes each group's rows to a separate function."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy, value_and_gradients
from keras import ops

from keras_moe import kernels

SIZES = [[3, 2, 4], [0, 9, 0], [5, 0, 1], [1, 1, 2]]
ROWS, WIDTH = 9, 2
COMPILED = [False, True] + (["xla"] if BACKEND == "tensorflow" else [])
SPEC = {
    "y": keras.KerasTensor((None, WIDTH)),
    "sum": keras.KerasTensor((None,)),
}


def functions(ran=None):
    """Return functions of `(e + 2) x^2` and row sums; the states count runs."""

    def make(e):
        def run(rows, state, real):
            if ran is not None:
                ran.append((e, rows["x"].shape[0]))
            y = (e + 2.0) * rows["x"] ** 2
            return {"y": y, "sum": ops.sum(rows["x"], axis=-1)}, state + 1.0

        return run

    return [make(e) for e in range(3)]


def expected(x, sizes):
    group = np.repeat([0, 1, 2], sizes)
    scale, total = np.zeros((ROWS, 1)), np.zeros(ROWS)
    scale[: len(group), 0] = group + 2
    total[: len(group)] = x[: len(group)].sum(-1)
    return scale, scale * x**2, total


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_states_and_gradients(sizes, compiled, rng):
    x = draw(rng, ROWS, WIDTH)

    def run(x):
        outputs, states = kernels.map_groups(
            functions(),
            {"x": x},
            np.array(sizes, "int32"),
            [ops.zeros(())] * 3,
            SPEC,
            [[x]] * 3,
        )
        column = ops.expand_dims(outputs["sum"], -1)
        counts = ops.broadcast_to(ops.stack(states), (ROWS, 3))
        return ops.concatenate([outputs["y"], column, counts], axis=-1)

    y, (gradient,) = value_and_gradients(run, x, compiled=compiled)
    scale, square, total = expected(x, sizes)
    np.testing.assert_allclose(y[:, :WIDTH], square, rtol=1e-6)
    np.testing.assert_allclose(y[:, WIDTH], total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[0, 3:], np.array(sizes) > 0)
    weights = np.random.default_rng(7).normal(size=y.shape)
    by_hand = 2 * scale * x * weights[:, :2]
    by_hand += (scale > 0) * weights[:, 2:3]
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-6)


def test_no_rows_anywhere(rng):
    """If all rows are padding, the outputs are zeros."""
    outputs, _ = kernels.map_groups(
        functions(),
        {"x": ops.convert_to_tensor(draw(rng, ROWS, WIDTH))},
        ops.zeros((3,), "int32"),
        [ops.zeros(())] * 3,
        SPEC,
        [[]] * 3,
    )
    assert outputs["y"].shape == (ROWS, WIDTH)
    assert not to_numpy(outputs["y"]).any()
    assert not to_numpy(outputs["sum"]).any()


@pytest.mark.skipif(BACKEND == "jax", reason="both branches are traced")
def test_an_empty_group_does_not_run(rng):
    ran = []
    kernels.map_groups(
        functions(ran),
        {"x": ops.convert_to_tensor(draw(rng, ROWS, WIDTH))},
        ops.convert_to_tensor([5, 0, 1], "int32"),
        [ops.zeros(())] * 3,
        SPEC,
        [[]] * 3,
    )
    assert ran == [(0, 5), (2, 1)]


@pytest.mark.skipif(BACKEND != "jax", reason="others slice to any size")
def test_static_programs_choose_the_smallest_size(rng):
    """XLA gets programs of 4 and 9 rows for 9 rows in 3 groups.

    With `most_rows`, XLA gets one program of that many rows.
    """
    rows = {"x": ops.convert_to_tensor(draw(rng, ROWS, WIDTH))}
    sizes = ops.convert_to_tensor([3, 2, 4], "int32")
    for most_rows, traced in ((None, {4, 9}), (5, {5})):
        ran = []
        states = [ops.zeros(())] * 3
        kernels.map_groups(
            functions(ran), rows, sizes, states, SPEC, [[]] * 3, most_rows
        )
        assert {size for _, size in ran} == traced


def test_an_empty_group_of_unknown_width_runs_on_one_row(rng):
    """No shape determines what an empty group's outputs would be."""
    x = ops.convert_to_tensor(draw(rng, 4, 3))

    def twice(rows, state, real):
        return ops.concatenate([rows, rows], axis=1), state

    outputs, _ = kernels.map_groups(
        [twice, twice],
        x,
        ops.convert_to_tensor([0, 3], "int32"),
        [ops.zeros(())] * 2,
        keras.KerasTensor((None, None if BACKEND != "jax" else 6)),
        [[], []],
    )
    both = np.concatenate([to_numpy(x)] * 2, axis=1)
    np.testing.assert_array_equal(to_numpy(outputs)[:3], both[:3])
    assert not to_numpy(outputs)[3].any()
