"""Compare a bank of experts with Dense layers, one by one."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from keras import ops

from keras_moe import Expert, MoEBlock
from keras_moe.layers.initializers import PerExpert

INITIALIZERS = [
    "glorot_uniform",
    "glorot_normal",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "variance_scaling",
]


def dense_ffn(x, layer, e):
    """Return expert e's outputs, from `Dense` layers with its weights."""

    def dense(name, activation=None):
        kernel = getattr(layer, f"{name}_kernel")
        bias = getattr(layer, f"{name}_bias")
        made = keras.layers.Dense(
            kernel.shape[-1], activation, use_bias=bias is not None
        )
        made.build((None, kernel.shape[1]))
        weights = [to_numpy(kernel)[e]]
        weights += [] if bias is None else [to_numpy(bias)[e]]
        made.set_weights(weights)
        return made

    hidden = dense("up", None if layer.gated else layer.activation)(x)
    if layer.gated:
        hidden = dense("gate", layer.activation)(x) * hidden
    return to_numpy(dense("down")(hidden))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_each_group_goes_through_its_own_network(rng, gated, use_bias):
    layer = Expert(
        10,
        3,
        activation="silu",
        gated=gated,
        use_bias=use_bias,
        bias_initializer="random_normal",
    )
    x, sizes = draw(rng, 9, 6), [4, 0, 3]
    y = to_numpy(layer(x, group_sizes=np.array(sizes, "int32")))
    np.testing.assert_allclose(y[:4], dense_ffn(x[:4], layer, 0), atol=1e-5)
    np.testing.assert_allclose(y[4:7], dense_ffn(x[4:7], layer, 2), atol=1e-5)
    np.testing.assert_array_equal(y[7:], np.zeros((2, 6)))


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6), (2, 3, 4, 6), (0, 6)])
def test_one_expert_is_a_dense_network_of_any_rank(rng, shape):
    layer = Expert(10, gated=True, activation="gelu")
    x = draw(rng, *shape)
    y = to_numpy(layer(x))
    assert y.shape == shape
    flat = dense_ffn(x.reshape(-1, 6), layer, 0).reshape(shape)
    np.testing.assert_allclose(y, flat, atol=1e-5)
    rows = np.array([int(np.prod(shape[:-1]))], "int32")
    grouped = layer(x.reshape(-1, 6), group_sizes=rows)
    np.testing.assert_allclose(to_numpy(grouped).reshape(shape), y, atol=1e-5)


def test_outputs_of_another_width(rng):
    """A grouped, a single, and a symbolic call work; a block raises."""
    layer = Expert(10, 3, output_dim=4)
    x = draw(rng, 7, 6)
    y = to_numpy(layer(x, group_sizes=np.array([4, 0, 3], "int32")))
    np.testing.assert_allclose(y[4:], dense_ffn(x[4:], layer, 2), atol=1e-5)
    outputs = to_numpy(layer.run_all(x[None]))
    np.testing.assert_allclose(outputs[1], dense_ffn(x, layer, 1), atol=1e-5)
    for remat in (False, True):
        alone = Expert(10, output_dim=4, remat=remat)
        assert alone(draw(rng, 2, 3, 6)).shape == (2, 3, 4)
        assert alone(keras.Input((3, 6))).shape == (None, 3, 4)
    with pytest.raises(ValueError, match="must give outputs of the shape"):
        MoEBlock(3, experts=Expert(10, 3, output_dim=4)).build((None, 6))
    with pytest.raises(ValueError, match="`output_dim` must be an integer"):
        Expert(10, output_dim=0)


def test_weight_names_and_shapes():
    layer = Expert(10, 3, gated=True)
    layer.build((None, 6))
    shapes = {
        "up_kernel": (3, 6, 10),
        "up_bias": (3, 10),
        "gate_kernel": (3, 6, 10),
        "gate_bias": (3, 10),
        "down_kernel": (3, 10, 6),
        "down_bias": (3, 6),
    }
    assert {w.name: w.shape for w in layer.trainable_variables} == shapes
    for name, shape in shapes.items():
        assert getattr(layer, name).shape == shape


def test_rows_of_rank_3_and_outputs_of_another_width(rng):
    """A row of `(S, D)` becomes `(S, H)`; rows after the groups are zero."""
    layer = Expert(10, 2, output_dim=3)
    rows, sizes = draw(rng, 6, 5, 4), np.array([2, 3], "int32")
    y = to_numpy(layer(rows, group_sizes=sizes))
    assert y.shape == layer.compute_output_shape(rows.shape) == (6, 5, 3)
    for e, (start, end) in enumerate([(0, 2), (2, 5)]):
        wanted = dense_ffn(rows[start:end], layer, e)
        np.testing.assert_allclose(y[start:end], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[5:], 0)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("num_experts", [1, 8, 64, 128])
def test_each_expert_starts_as_a_dense_kernel_does(name, num_experts):
    """The standard deviation of each slice is that of Dense, within noise.

    The standard deviation of n draws has a relative standard deviation of at
    most sqrt(1 / 2n) (if the draws are normal, and less if they are bounded).
    That is 1.4 % for 50 x 50, and less for the mean of many; five times as
    much is allowed. A fan that is read as a convolution's would be off by
    sqrt(E), which is 65 % for 8 experts.
    """

    def dense_kernel():
        dense = keras.layers.Dense(50, kernel_initializer=name)
        dense.build((None, 50))
        return to_numpy(dense.kernel)

    wanted = np.mean([dense_kernel().std() for _ in range(16)])
    layer = Expert(50, num_experts, kernel_initializer=name)
    layer.build((None, 50))
    noise = 5 / 5000**0.5
    for kernel in (layer.up_kernel, layer.down_kernel):
        slices = to_numpy(kernel)
        deviations = slices.std(axis=(1, 2))
        np.testing.assert_allclose(deviations, wanted, rtol=noise * 1.25)
        np.testing.assert_allclose(
            deviations.mean(),
            wanted,
            rtol=noise * (num_experts**-0.5 + 16**-0.5),
        )


@pytest.mark.one_backend
@pytest.mark.parametrize("seed", [None, 3])
def test_no_two_experts_and_no_two_weights_start_alike(seed):
    """A Keras initializer with a seed repeats itself; experts must differ."""
    initializer = keras.initializers.GlorotUniform(seed=seed)
    layer = Expert(6, 8, gated=True, kernel_initializer=initializer)
    layer.build((None, 6))
    slices = np.concatenate(
        [
            to_numpy(kernel)
            for kernel in (
                layer.up_kernel,
                layer.gate_kernel,
                layer.down_kernel,
            )
        ]
    ).reshape(24, -1)
    assert len(np.unique(slices, axis=0)) == 24


def test_a_seed_starts_the_same_experts_again():
    def kernels():
        initializer = keras.initializers.HeNormal(seed=3)
        layer = Expert(6, 4, kernel_initializer=initializer)
        layer.build((None, 6))
        return to_numpy(layer.up_kernel)

    np.testing.assert_array_equal(kernels(), kernels())


def test_initializers_without_a_seed_are_called_for_each_expert():
    identity = PerExpert(keras.initializers.Identity(), "up_kernel")
    np.testing.assert_array_equal(
        to_numpy(identity((2, 3, 3), "float32")), [np.eye(3)] * 2
    )


def test_dropout_is_on_the_hidden_units_in_training_only(rng):
    """With identity matrices, the output is the hidden units themselves."""
    layer = Expert(
        40,
        2,
        use_bias=False,
        dropout=0.5,
        kernel_initializer="identity",
        seed=1,
    )
    x = np.abs(draw(rng, 50, 40)) + 0.1
    sizes = np.array([20, 30], "int32")
    np.testing.assert_allclose(
        to_numpy(layer(x, group_sizes=sizes)), x, rtol=1e-5
    )
    dropped = to_numpy(layer(x, group_sizes=sizes, training=True))
    kept = dropped != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(dropped[kept], 2 * x[kept], rtol=1e-5)


def test_regularizer_sums_over_the_experts():
    layer = Expert(
        4, 3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.5)
    )
    layer.build((None, 5))
    wanted = 0.5 * sum(
        (to_numpy(k) ** 2).sum() for k in (layer.up_kernel, layer.down_kernel)
    )
    assert to_numpy(sum(layer.losses)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"intermediate_dim": 0}, "intermediate_dim"),
        ({"intermediate_dim": None}, "intermediate_dim"),
        ({"intermediate_dim": 4, "num_experts": -1}, "num_experts"),
        ({"intermediate_dim": 4, "hidden_dim": 0}, "hidden_dim"),
        ({"intermediate_dim": 4, "activation": "rilu"}, "activation"),
        ({"intermediate_dim": 4, "dropout": 1.0}, "dropout"),
        ({"intermediate_dim": 4, "dropout": -0.5}, "dropout"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received: .*{name}"):
        Expert(**arguments)


def test_a_hidden_dim_that_is_not_the_inputs():
    with pytest.raises(ValueError, match="`hidden_dim` must"):
        Expert(4, hidden_dim=7)(np.zeros((2, 6), "float32"))


def test_missing_group_sizes():
    with pytest.raises(ValueError, match="`group_sizes` must be given"):
        Expert(4, 2)(np.zeros((2, 6), "float32"))


def test_group_sizes_of_another_length():
    layer = Expert(4, 2)
    with pytest.raises(ValueError, match="`group_sizes` must"):
        layer(
            np.zeros((2, 6), "float32"),
            group_sizes=np.array([1, 1, 0], "int32"),
        )


@pytest.mark.parametrize(
    "inputs",
    [np.zeros((2, 6), "int32"), np.zeros((2, 7), "float32")],
    ids=["integers", "width"],
)
def test_bad_inputs(inputs):
    layer = Expert(4)
    layer.build((None, 6))
    with pytest.raises(ValueError, match="`inputs` must .*Received"):
        layer(ops.convert_to_tensor(inputs))
