"""Test blocks inside loops, maps, and checkpoints that a user's code traces.

Losses and state cannot leave these on JAX and TensorFlow, but can on PyTorch.
"""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_moe import MoEBlock

BACKEND = keras.backend.backend()
D = 6
LEFT_OUT = "cannot leave the loop"
traced = pytest.mark.skipif(BACKEND == "torch", reason="PyTorch traces nothing")


def make_block():
    return MoEBlock(4, 8, load_balancing_weight=0.1, seed=3)


class Cell(keras.layers.Layer):
    def __init__(self, block=None, **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.output_size = D
        self.block = block or make_block()

    def build(self, input_shape):
        self.block.build((None, D))

    def call(self, x, states, training=None):
        state = ops.tanh(x + self.block(states[0] + x, training=training))
        return state, [state]


class Around(keras.layers.Layer):
    """A layer that passes its block and its inputs to a function."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.way = way
        self.block = make_block()

    def build(self, input_shape):
        self.block.build((None, D))

    def call(self, x, training=None):
        return self.way(functools.partial(self.block, training=training), x)


def rematerialized(function, x):
    return keras.remat(function)(x)


def mapped(function, x):
    return ops.map(function, x)


def vectorized(function, x):
    return ops.vectorized_map(function, x)


def chosen(function, x):
    return ops.cond(ops.sum(x) > -1e9, lambda: function(x), lambda: x)


WAYS = [rematerialized, mapped, chosen]
if BACKEND == "jax":
    WAYS.append(vectorized)


def state_of(layer):
    """Return the state that a step updates: the batches and the load."""
    block = block_of(layer)
    return [block.statistics.num_batches, block.statistics.expert_load]


def block_of(layer):
    return getattr(layer, "cell", layer).block


def trained(layer, x, y, tried=None):
    """Return the loss of a step, that of the task, and which state moved.

    On TensorFlow, Keras tries a function before it traces a loop of that
    function, so the block's losses for `tried` count as the task's.
    """
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    task = np.mean((y - model.predict(x, verbose=0)) ** 2)
    if tried is not None and BACKEND == "tensorflow":
        block_of(layer)(tried, training=True)
        task += float(sum(block_of(layer).losses))
    weights, state = (
        [keras.ops.convert_to_numpy(w).copy() for w in variables]
        for variables in (
            model.trainable_weights,
            state_of(layer),
        )
    )
    loss = model.train_on_batch(x, y)
    assert all(changed(weights, model.trainable_weights))
    moved = changed(state, state_of(layer))
    return float(loss), task, moved


def changed(before, variables):
    """Return whether each variable has another value than before."""
    return [
        bool(np.abs(old - ops.convert_to_numpy(variable)).max() > 0)
        for old, variable in zip(before, variables, strict=True)
    ]


def data(rng, *shape):
    x = rng.normal(size=shape).astype("float32")
    return x, np.tanh(x[..., ::-1]).copy()


def left_out(caught):
    return [w for w in caught if LEFT_OUT in str(w.message)]


@traced
@pytest.mark.parametrize("way", WAYS)
def test_a_step_trains_without_losses_that_cannot_leave(rng, way):
    x, y = data(rng, 4, 5, D)
    with pytest.warns(UserWarning, match=LEFT_OUT) as caught:
        tried = x[0] if way is mapped else None
        loss, task, moved = trained(Around(way), x, y, tried)
    assert len(left_out(caught)) == 1
    assert loss == pytest.approx(task, rel=1e-5)
    assert BACKEND != "jax" or not any(moved)


@traced
@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_a_recurrent_loop_warns_once(rng, weight):
    """On JAX, the loop also warns about the state if there are no losses."""
    if weight == 0.0 and BACKEND != "jax":
        pytest.skip("TensorFlow writes state in a loop")
    x, y = data(rng, 4, 5, D)
    cell = Cell(MoEBlock(4, 8, load_balancing_weight=weight))
    rnn = keras.layers.RNN(cell, return_sequences=True)
    with pytest.warns(UserWarning, match=LEFT_OUT) as caught:
        loss, task, moved = trained(rnn, x, y, x[:, 0])
    assert len(left_out(caught)) == 1
    assert loss == pytest.approx(task, rel=1e-5)
    assert any(moved) == (BACKEND == "tensorflow")


@pytest.mark.filterwarnings("error:.*cannot leave")
def test_an_unrolled_loop_has_the_losses_of_each_step(rng):
    x, y = data(rng, 4, 5, D)
    rnn = keras.layers.RNN(Cell(), return_sequences=True, unroll=True)
    loss, task, moved = trained(rnn, x, y)
    assert loss > task + 5 * 0.1 * 0.9  # 0.1 per step if the load is even
    assert all(moved)


def test_a_symbolic_call_in_training_does_not_warn():
    inputs = keras.Input((None, D))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Around(chosen)(inputs, training=True)


@pytest.mark.filterwarnings("error:.*cannot leave")
@pytest.mark.skipif(BACKEND != "jax", reason="JAX's way to call a layer")
def test_state_that_comes_in_as_an_argument_may_leave(rng):
    """A user's own layer runs a loop of `stateless_call`."""
    import jax

    def way(function, x):
        block = layer.block
        kept = [v.value for v in block.non_trainable_variables]
        weights = [v.value for v in block.trainable_variables]

        def body(kept, row):
            y, kept, losses = block.stateless_call(
                weights, kept, row, return_losses=True, **function.keywords
            )
            return kept, (y, sum(losses))

        kept, (y, losses) = jax.lax.scan(body, kept, x)
        for variable, value in zip(
            block.non_trainable_variables, kept, strict=True
        ):
            variable.assign(value)
        return y

    layer = Around(way)
    x, y = data(rng, 4, 5, D)
    _, _, moved = trained(layer, x, y)
    assert all(moved)
    assert float(layer.block.statistics.num_batches[0]) == 4
