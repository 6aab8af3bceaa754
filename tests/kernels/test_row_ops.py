"""Compare ranking, permuting, counting, and gathering with NumPy."""

from functools import partial

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy, upstream, value_and_gradients
from keras import ops

from keras_moe import kernels

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("rows", [50, 600])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_top_k_are_the_largest_and_ties_go_to_the_lower_column(
    rng, rows, top_k
):
    """Most of the few values tie; NumPy's stable sort is the oracle."""
    scores = rng.integers(-3, 3, size=(rows, 8)).astype("float32") / 7
    scores[rng.random(scores.shape) < 0.1] = -0.0
    wanted = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    index = to_numpy(kernels.top_k_index(scores, top_k))
    assert index.dtype == "int32"
    np.testing.assert_array_equal(index, wanted)


@pytest.mark.parametrize("rows", [1, 1000])
def test_top_k_distinguishes_neighboring_floats(rows):
    scores = np.full((rows, 6), 0.1, "float32")
    scores[:, 4] = np.nextafter(np.float32(0.1), np.float32(1))
    scores[:, 1] = -np.nextafter(np.float32(0.1), np.float32(1))
    scores[:, 2] = -scores[:, 0]
    index = to_numpy(kernels.top_k_index(scores, 6))
    np.testing.assert_array_equal(index, [[4, 0, 3, 5, 2, 1]] * rows)


@pytest.mark.parametrize("rows", [1, 1000])
def test_top_k_of_infinities_and_nan(rows):
    row = [np.nan, np.inf, -np.inf, 0.5, -0.5]
    scores = np.array([row] * rows, "float32")
    index = to_numpy(kernels.top_k_index(scores, 5))
    np.testing.assert_array_equal(index, [[1, 3, 0, 4, 2]] * rows)


@pytest.mark.parametrize("size", [0, 1, 40])
def test_inverse_permutation(rng, size):
    order = rng.permutation(size).astype("int32")
    place = to_numpy(kernels.inverse_permutation(order))
    assert place.dtype == "int32"
    np.testing.assert_array_equal(place[order], np.arange(size))


def test_group_sizes_count_each_expert_and_skip_index_e():
    sizes = kernels.group_sizes_of(np.array([2, 0, 2, 3, 3, 2], "int32"), 3)
    np.testing.assert_array_equal(to_numpy(sizes), [1, 0, 3])


def test_value_and_gradient_of_a_scalar_function(rng):
    """The value is sum(a x^2), and the gradient is 2 a x."""
    a, x = rng.normal(size=(2, 3, 4)).astype("float32")
    weight = keras.Variable(a)
    value, gradient = kernels.value_and_gradient(
        lambda x: ops.sum(ops.multiply(weight, x**2)), x
    )
    assert float(to_numpy(value)) == pytest.approx((a * x**2).sum(), rel=1e-5)
    np.testing.assert_allclose(to_numpy(gradient), 2 * a * x, rtol=1e-5)


def test_value_and_gradient_of_a_constant():
    x = np.ones((2, 3), "float32")
    _, gradient = kernels.value_and_gradient(lambda x: ops.ones(()), x)
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros((2, 3)))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_is_a_constant_to_an_outer_one(rng, compiled):
    """d/dx of x . stop(2 x) is 2 x, not 4 x."""
    x = draw(rng, 5)

    def function(x):
        _, gradient = kernels.value_and_gradient(lambda x: ops.sum(x**2), x)
        return x * gradient

    y, (gradient,) = value_and_gradients(function, x, compiled=compiled)
    np.testing.assert_allclose(y, 2 * x**2, rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * x * upstream(x.shape), rtol=1e-5)


def test_take_rows(rng):
    table = draw(rng, 5, 3)
    rows = np.array([4, 0, 0, 2], "int32")
    taken = kernels.take_rows(
        ops.convert_to_tensor(table), ops.convert_to_tensor(rows)
    )
    np.testing.assert_array_equal(to_numpy(taken), table[rows])


def test_a_linear_maps_gradient_is_the_transpose(rng):
    """The gradient uses the given transpose, even if it is wrong."""
    x = draw(rng, 4, 3)

    def function(x):
        return kernels.linear_map(lambda x: 2 * x, lambda dy: 5 * dy, x)

    y, (dx,) = value_and_gradients(function, x)
    np.testing.assert_allclose(y, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(dx, 5 * upstream((4, 3)), rtol=1e-6)
    tensor = ops.convert_to_tensor(x)  # needs no gradient
    y = kernels.linear_map(lambda x: 2 * x, lambda dy: dy, tensor)
    np.testing.assert_allclose(to_numpy(y), 2 * x, rtol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 7, 64, 65, 500])
def test_sorting_by_group_keeps_the_order_and_counts(rng, size):
    """Of six groups, group 3 is empty; indices 6 and 7 belong to none."""
    index = rng.choice([0, 1, 2, 4, 5, 6, 7], size).astype("int32")
    found = kernels.sort_groups(ops.convert_to_tensor(index), 6)
    order, place, sizes = map(to_numpy, found)
    assert {order.dtype, place.dtype, sizes.dtype} == {np.dtype("int32")}
    np.testing.assert_array_equal(order, np.argsort(index, kind="stable"))
    np.testing.assert_array_equal(order[place], np.arange(size))
    np.testing.assert_array_equal(sizes, np.bincount(index, minlength=6)[:6])


@pytest.mark.parametrize("num_rows, num_columns", [(3, 2), (4, 1), (0, 2)])
def test_row_of_each_entry(num_rows, num_columns):
    table = ops.zeros((num_rows, num_columns))
    rows = to_numpy(kernels.row_of_each(table))
    expected = np.arange(num_rows).repeat(num_columns)
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.int32


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("num_terms, width", [(1, 3), (2, 5), (3, 70_000)])
def test_gathered_sums_and_their_gradients(rng, num_terms, width, weighted):
    """The wide rows are so large that the gradient is computed in parts."""
    num_sums = 4
    rows = draw(rng, num_sums * num_terms, width)
    place = rng.permutation(len(rows)).astype("int32")
    order = np.argsort(place).astype("int32")
    arrays = (rows, draw(rng, len(rows))) if weighted else (rows,)

    def function(rows, weights=None):
        return kernels.gathered_sum(
            rows,
            ops.convert_to_tensor(place),
            ops.convert_to_tensor(order),
            num_terms,
            weights,
        )

    y, (d_rows, *d_weights) = value_and_gradients(function, *arrays)
    dy = upstream((num_sums, width))
    weights = arrays[1] if weighted else np.ones(len(rows), "float32")
    found = rows[place].reshape(num_sums, num_terms, width)
    own = weights.reshape(num_sums, num_terms)
    expected = np.einsum("tk,tkd->td", own, found)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    expected = np.empty_like(rows)
    expected[place] = weights[:, None] * dy.repeat(num_terms, axis=0)
    np.testing.assert_allclose(d_rows, expected, rtol=1e-5, atol=1e-5)
    if weighted:
        expected = np.einsum("tkd,td->tk", found, dy).reshape(-1)
        np.testing.assert_allclose(d_weights[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(BACKEND != "torch", reason="tests torch.compile")
def test_torch_compile_does_not_take_gathered_sums_apart(rng):
    import torch

    operations = []

    def compiler(graph, inputs):
        operations.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    @partial(torch.compile, backend=compiler)
    def function(rows, place, order):
        return 1 + kernels.gathered_sum(2 * rows, place, order, 2)

    for num_sums in (3, 5):
        rows = draw(rng, 2 * num_sums, 4)
        place = rng.permutation(2 * num_sums).astype("int32")
        order = np.argsort(place).astype("int32")
        y = function(*map(ops.convert_to_tensor, (rows, place, order)))
        expected = 1 + 2 * rows[place].reshape(num_sums, 2, 4).sum(axis=1)
        np.testing.assert_allclose(to_numpy(y), expected, rtol=1e-5)
    assert any("mul" in name for name in operations)  # the rest is compiled
    assert not any("index" in name or "sum" in name for name in operations)


def test_gathered_sums_of_no_rows():
    nothing = ops.zeros((0,), "int32")
    y = kernels.gathered_sum(ops.zeros((0, 3)), nothing, nothing, 2)
    assert tuple(y.shape) == (0, 3)


def test_light_operations_equal_those_of_keras(rng):
    """Values and dtypes agree, for tensors and for arrays."""
    light = kernels.light_ops
    floats, index = draw(rng, 4, 3), rng.integers(0, 5, (4, 3)).astype("int32")
    cases = [
        ("convert_to_tensor", floats),
        ("cast", floats, "int32"),
        ("cast", index, "float32"),
        ("reshape", index, (-1,)),
        ("expand_dims", floats, -1),
        ("where", floats > 0, floats, -1e30),
        ("where", floats > 0, index, 7),
        ("where", floats[:, :1] > 0, floats, floats * 2),
        ("sum", floats),
        ("sum", index, -1),
        ("sum", floats, 0, True),
        ("maximum", floats, 0.5),
        ("maximum", floats, floats[::-1].copy()),
        ("softmax", floats),
        ("zeros", (2, 3), "float32"),
        ("argsort", index[:, 0]),
    ]
    for name, *arguments in cases:
        wanted = getattr(ops, name)(*arguments)
        tensors = [
            ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a
            for a in arguments
        ]
        for given in (arguments, tensors):
            found = getattr(light, name)(*given)
            assert found.dtype == wanted.dtype, name
            np.testing.assert_allclose(
                to_numpy(found), to_numpy(wanted), rtol=1e-6
            )
