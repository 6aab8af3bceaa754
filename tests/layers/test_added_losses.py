"""Test the losses that layers add: per call, in floatx, of real rows."""

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from elsewhere import run_on

import keras_moe
from keras_moe import MoEBlock


def loss_of(model, *inputs):
    """Return the loss of one step with targets of zero."""
    outputs = model.output_shape
    y = np.zeros((len(inputs[0]), *outputs[1:]), "float32")
    model.compile("sgd", "mse")
    x = list(inputs) if len(inputs) > 1 else inputs[0]
    return model.fit(x, y, batch_size=len(y), verbose=0).history["loss"][0]


def shared_block():
    """Return a block whose load-balancing loss is 1."""
    return MoEBlock(1, 8, top_k=1, load_balancing_weight=1.0)


@keras.saving.register_keras_serializable(package="tests")
class Around(keras.layers.Layer):
    """A user's own layer that holds a block."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def build(self, shape):
        self.block.build(shape)

    def call(self, x, training=None):
        return self.block(x, training=training)

    def compute_output_shape(self, shape):
        return shape


def trunk_of(block):
    inputs = keras.Input((6,))
    return keras.Model(inputs, block(inputs))


HOLDERS = {
    "block": lambda block: block,
    "own layer": Around,
    "trunk": trunk_of,
    "encoder": lambda block: keras_moe.TransformerEncoderBlock(2, block),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_layer_that_is_called_twice_adds_both_losses(hold, rng):
    layer, block = hold(block := shared_block()), block
    shape = (4, 6) if "Encoder" in type(layer).__name__ else (6,)
    a, b = keras.Input(shape), keras.Input(shape)
    model = keras.Model([a, b], 0.0 * (layer(a) + layer(b)))
    x = rng.normal(size=(16, *shape)).astype("float32")
    assert loss_of(model, x, x) == pytest.approx(2.0, abs=1e-5)
    assert loss_of(model, x, x) == pytest.approx(2.0, abs=1e-5)  # traced again
    assert float(to_numpy(block.statistics.num_batches)[0]) == 4


def test_two_blocks_add_a_loss_each_in_every_trace(rng):
    """An id that Keras has stored may be that of another block's loss."""
    inputs = keras.Input((6,))
    blocks = [shared_block() for _ in range(4)]
    x = inputs
    for block in blocks:
        x = block(x)
    model = keras.Model(inputs, 0.0 * x)
    for rows in (16, 8, 4):
        x = rng.normal(size=(rows, 6)).astype("float32")
        assert loss_of(model, x) == pytest.approx(4.0, abs=1e-5)


def test_stateless_calls_keep_the_losses_of_their_scope(rng):
    block = shared_block()
    x = rng.normal(size=(8, 6)).astype("float32")
    block(x)
    state = [
        [v.value for v in variables]
        for variables in (
            block.trainable_variables,
            block.non_trainable_variables,
        )
    ]
    for _ in range(2):
        *_, losses = block.stateless_call(
            *state, x, training=True, return_losses=True
        )
        assert [float(to_numpy(x)) for x in losses] == pytest.approx([1.0])


def test_activity_regularizers_of_experts_use_real_rows_only(rng):
    """The loss is the mean over an expert's rows of its squared outputs.

    If shapes are static, an expert also runs on copies of a row.
    """
    squares = keras.regularizers.L2(1.0)

    def expert():
        hidden = keras.layers.Dense(3, activity_regularizer=squares)
        return keras.Sequential([hidden, keras.layers.Dense(6)])

    experts = [expert() for _ in range(4)]
    router = keras_moe.RuleRouter(4)
    block = MoEBlock(4, router=router, experts=experts)
    x = rng.normal(size=(20, 6)).astype("float32")
    ids = np.repeat([0, 2, 3], [3, 5, 12]).astype("int32")
    inputs, numbers = keras.Input((6,)), keras.Input((), dtype="int32")
    model = keras.Model(
        [inputs, numbers], 0.0 * block(inputs, router_inputs=numbers)
    )
    expected = 0.0
    for e in (0, 2, 3):
        kernel, bias = map(to_numpy, experts[e].layers[0].weights)
        hidden = x[ids == e] @ kernel + bias
        expected += np.mean(np.sum(hidden**2, axis=1))
    assert loss_of(model, x, ids) == pytest.approx(expected, rel=1e-4)


@pytest.mark.one_backend
def test_float64():
    """Every loss of the package is in floatx (JAX has a separate process)."""
    if BACKEND == "jax":
        run_on("jax", "float64_losses")
        return
    import float64_losses

    float64_losses.main()
