"""Check the effect of each private name of Keras.

If a test fails with another version of Keras, change the function of
`keras_moe/_keras.py`. `test_private_names.py` compares the names.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from keras import ops
from private_names import of

from keras_moe import _keras


class Adding(keras.layers.Layer):
    """Adds the sum of its inputs to the loss."""

    def call(self, inputs):
        self.add_loss(ops.sum(inputs))
        return inputs


def small_model(loss="mse", optimizer="sgd"):
    model = keras.Sequential([keras.layers.Dense(1, use_bias=False)])
    model.build((None, 1))
    model.compile(optimizer, loss, jit_compile=False)
    return model


def fit(model, **kwargs):
    x = np.ones((2, 1), "float32")
    return model.fit(x, x, batch_size=2, verbose=0, **kwargs)


@of("_flatten_layers")
def test_nested_layers_are_found_once():
    shared = keras.layers.Dense(2)
    inner = keras.Sequential([shared])
    model = keras.Sequential([inner, shared])
    model.build((1, 2))
    found = _keras.every_layer_of(model)
    assert found[0] is model
    assert {id(x) for x in found} >= {id(inner), id(shared)}
    inside = _keras.layers_inside(model)
    assert [x for x in inside if x is shared] == [shared]
    assert model not in inside
    below = _keras.layers_right_below(keras.Sequential([inner]))
    assert inner in below and shared not in below


@of("_clear_losses")
def test_losses_are_cleared_when_an_outermost_call_begins():
    class Counting(keras.layers.Layer):
        cleared = 0

        def _clear_losses(self):
            self.cleared += 1
            super()._clear_losses()

        def call(self, inputs):
            return inputs

    class Outer(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, inputs):
            return self.inner(self.inner(inputs))

    counting = Counting()
    outer = Outer(counting)
    outer(np.ones((1, 1)))  # builds
    before = counting.cleared
    for calls in (1, 2):
        outer(np.ones((1, 1)))
        assert counting.cleared == before + calls
    adding = Adding()
    adding(np.ones(1))
    assert len(adding.losses) == 1
    _keras.clear_losses(adding)
    assert adding.losses == []


class Kept:
    """Replaces the list of a layer's losses."""

    def __init__(self):
        self.losses = []

    def extend(self, losses):
        self.losses.extend(losses)

    def clear(self):
        self.losses.clear()

    def __getitem__(self, index):
        return self.losses[index]


@of("_losses")
def test_keras_keeps_losses_in_the_list_that_is_replaced():
    layer = Adding()
    layer(np.ones(2))
    (loss,) = _keras.added_losses_of(layer)
    assert loss is layer.losses[0]
    _keras.replace_added_losses(layer, Kept)
    kept = _keras.added_losses_of(layer)
    assert isinstance(kept, Kept)
    for _ in range(2):  # the second call clears the loss of the first
        layer(np.ones(3))
    assert to_numpy(layer.losses[0]) == 3
    assert kept.losses == layer.losses
    _keras.replace_added_losses(layer, list)
    assert _keras.added_losses_of(layer) is kept


@of("_loss_ids")
def test_stateless_losses_are_those_of_the_set_of_ids():
    layer = Adding()
    layer.build((1,))
    with keras.StatelessScope(collect_losses=True):
        layer(ops.ones(2))
        ids = _keras.stateless_loss_ids_of(layer)
        (loss,) = layer.losses
        assert ids == {id(loss)}
        ids.clear()
        assert layer.losses == []
        ids.update({id(loss)})
        assert layer.losses == [loss]


@of("_losses_override")
def test_losses_of_a_step_are_recognized():
    seen = []

    class Noting(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            seen.append(_keras.has_losses_of_step(self))
            return super().compute_loss(*args, **kwargs)

    model = Noting([Adding(), keras.layers.Dense(1)])
    model.build((None, 1))
    model.compile("sgd", "mse", jit_compile=False)
    assert not _keras.has_losses_of_step(model)
    fit(model)
    assert seen and (True in seen) is (BACKEND == "jax")
    model._losses_override.append(7.0)
    assert _keras.has_losses_of_step(model)
    assert model.losses == [7.0]


@of("_compile_loss")
def test_the_compiled_loss_is_a_function_of_targets_and_outputs():
    loss = _keras.compiled_loss_of(small_model())
    value = loss(ops.array([[1.0]]), ops.array([[3.0]]), None)
    assert to_numpy(value) == 4
    assert _keras.compiled_loss_of(keras.Sequential([Adding()])) is None


@of("_value")
def test_a_stored_value_is_not_cast():
    class Reading(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=(1,), initializer="ones")

        def call(self, inputs):
            stored = _keras.stored_value_of(self.w)
            self.dtypes = [
                keras.backend.standardize_dtype(x.dtype)
                for x in (self.w.value, stored)
            ]
            return inputs * self.w

    layer = Reading(dtype="mixed_bfloat16")
    layer(np.ones((1, 1)))
    assert layer.dtypes == ["bfloat16", "float32"]


# TensorFlow's variables have their own shape.
@of("_value", "_shape", backends=("jax", "torch"))
def test_a_variable_gets_another_tensor_and_shape():
    variable = keras.Variable(np.zeros(4, "float32"))
    parts = ops.convert_to_tensor(np.array([1, 2], "float32"))
    _keras.put_value(variable, parts)
    _keras.put_shape(variable, parts.shape)
    assert variable.value is parts and variable.shape == (2,)
    np.testing.assert_array_equal(to_numpy(variable + 1), [2, 3])
    with pytest.raises(ValueError):
        variable.assign(np.zeros(4, "float32"))
    variable.assign(np.array([5, 6], "float32"))
    np.testing.assert_array_equal(to_numpy(variable.value), [5, 6])


@of("_torch_params", backends=("torch",))
def test_noted_weights_are_the_current_ones():
    import torch

    layer = keras.layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    old = next(layer.parameters())
    new = torch.nn.Parameter(torch.ones(1, 1))
    _keras.put_value(layer.kernel, new)
    assert next(layer.parameters()) is old
    _keras.note_weights_anew(layer)
    assert [p is new for p in layer.parameters()] == [True]


@of("_is_quantized")
def test_a_layer_that_is_marked_is_not_quantized_again():
    plain, marked = (keras.layers.Dense(4) for _ in range(2))
    for layer in (plain, marked):
        layer.build((None, 4))
    _keras.mark_quantized(marked)
    for layer in (plain, marked):
        layer.dtype_policy = "int8_from_float32"
    dtypes = [str(x.kernel.dtype) for x in (plain, marked)]
    assert dtypes == ["int8", "float32"]
    with pytest.raises(ValueError, match="already quantized"):
        marked.quantize("int8")


@of("_remat_mode")
def test_keras_repeats_a_call_by_the_mode_and_the_method():
    assert _keras.remat_mode_of(Adding()) is None
    with keras.RematScope("full"):
        layer = keras.layers.Dense(1)
    assert _keras.remat_mode_of(layer).mode == "full"
    layer.build((None, 1))
    calls = []

    def repeated(call, *args, **kwargs):
        calls.append(call)
        return call

    layer.__dict__[_keras.REMATERIALIZED_CALL] = repeated
    layer(np.ones((1, 1)))
    assert len(calls) == 1


@of("_get_variable_index", "_momentums", "_velocities", "_velocity_hats")
def test_adams_moments_are_those_of_the_variable():
    """After one step, m = (1 - b1) g and v = (1 - b2) g^2.

    Here g = 2, b1 = 0.9, and b2 = 0.99 (Kingma & Ba 2014, algorithm 1).
    """
    variables = [keras.Variable(np.zeros(1, "float32")) for _ in range(2)]
    for amsgrad in (False, True):
        adam = keras.optimizers.Adam(beta_2=0.99, amsgrad=amsgrad)
        adam.build(variables)
        adam.apply([ops.full((1,), 5.0), ops.full((1,), 2.0)], variables)
        slots = _keras.adam_slots_of(adam, variables[1])
        values = [float(to_numpy(slot.value)[0]) for slot in slots]
        expected = [0.2, 0.04, 0.04] if amsgrad else [0.2, 0.04]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@of("_trainable_variables")
def test_an_optimizer_takes_gradients_in_the_order_of_its_variables():
    variables = [keras.Variable(np.zeros(1, "float32")) for _ in range(2)]
    sgd = keras.optimizers.SGD(1.0)
    sgd.build(variables)
    sgd.apply([ops.full((1,), 5.0), ops.full((1,), 2.0)])
    trained = _keras.variables_trained_by(sgd)
    assert [float(to_numpy(v.value)[0]) for v in trained] == [-5, -2]


@of("_initial_epoch")
def test_fit_starts_at_the_epoch_that_is_set():
    model = small_model()

    class Resuming(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras.set_initial_epoch(self.model, 2)

    assert _keras.initial_epoch_of(model) is None
    history = fit(model, epochs=4, callbacks=[Resuming()])
    assert history.epoch == [2, 3]
    assert _keras.initial_epoch_of(model) == 2


@of("_model")
def test_a_callbacks_model_is_given_without_synchronizing():
    synchronized = []

    class Recording(keras.Model):
        def jax_state_sync(self):
            synchronized.append(self)

    model, callback = Recording(), keras.callbacks.Callback()
    callback.set_model(model)
    assert _keras.unsynchronized_model_of(callback) is model
    assert synchronized == []
    assert callback.model is model
    assert len(synchronized) == (BACKEND == "jax")


@of("_distribute_strategy", "_maybe_symbolic_build", backends=("tensorflow",))
def test_keras_builds_and_reduces_under_a_strategy(monkeypatch):
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = small_model()
    assert _keras.strategy_of(model) is strategy
    assert _keras.strategy_of(small_model()) is None
    build, built = _keras.symbolic_build_of(model), []

    def own_build(**kwargs):
        built.append(sorted(kwargs))
        return build(**kwargs)

    _keras.replace_symbolic_build(model, own_build)
    reduce, reduced = _keras.replica_reduction(), []

    def own_reduce(values, *args, **kwargs):
        reduced.append(values)
        return reduce(values, *args, **kwargs)

    spaces = keras.Model.make_train_function.__globals__
    monkeypatch.setitem(spaces, reduce.__name__, own_reduce)
    fit(model)
    assert built == [["iterator"]]
    assert reduced
