"""What each private name of Keras and of the backends does, by its effect.

If a test fails with another version of a library, the function of
`keras_moe/_keras.py`, `_jax.py`, `_tensorflow.py`, or `_torch.py` has to
change with it. `test_private_names.py` compares the names.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from keras import ops

from keras_moe import _keras

ALL = ("jax", "tensorflow", "torch")


def of(backends, *names):
    """Mark a test of private names, which runs on these backends."""
    return pytest.mark.skipif(
        BACKEND not in backends, reason=f"{names} on {backends}"
    )


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


@of(ALL, "_flatten_layers")
def test_layers_are_found_however_deep_and_once():
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


@of(ALL, "_clear_losses")
def test_losses_are_cleared_where_an_outermost_call_begins():
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
    """In place of the list of a layer's losses."""

    def __init__(self):
        self.losses = []

    def extend(self, losses):
        self.losses.extend(losses)

    def clear(self):
        self.losses.clear()

    def __getitem__(self, index):
        return self.losses[index]


@of(ALL, "_losses")
def test_keras_keeps_losses_in_the_list_that_is_replaced():
    layer = Adding()
    layer(np.ones(2))
    (loss,) = _keras.added_losses_of(layer)
    assert loss is layer.losses[0]
    _keras.replace_added_losses(layer, Kept)
    kept = _keras.added_losses_of(layer)
    assert isinstance(kept, Kept)
    for _ in range(2):  # the second call clears the first one's
        layer(np.ones(3))
    assert to_numpy(layer.losses[0]) == 3
    assert kept.losses == layer.losses
    _keras.replace_added_losses(layer, list)
    assert _keras.added_losses_of(layer) is kept


@of(ALL, "_loss_ids")
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


@of(ALL, "_losses_override")
def test_losses_of_a_step_are_recognized():
    seen = []

    class Asking(keras.Sequential):
        def compute_loss(self, *args, **kwargs):
            seen.append(_keras.has_losses_of_step(self))
            return super().compute_loss(*args, **kwargs)

    model = Asking([Adding(), keras.layers.Dense(1)])
    model.build((None, 1))
    model.compile("sgd", "mse", jit_compile=False)
    assert not _keras.has_losses_of_step(model)
    fit(model)
    assert seen and (True in seen) is (BACKEND == "jax")
    model._losses_override.append(7.0)
    assert _keras.has_losses_of_step(model)
    assert model.losses == [7.0]


@of(ALL, "_compile_loss")
def test_the_compiled_loss_is_a_function_of_targets_and_outputs():
    loss = _keras.compiled_loss_of(small_model())
    value = loss(ops.array([[1.0]]), ops.array([[3.0]]), None)
    assert to_numpy(value) == 4
    assert _keras.compiled_loss_of(keras.Sequential([Adding()])) is None


@of(ALL, "_value")
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


# TensorFlow's variables have a shape of their own.
@of(("jax", "torch"), "_value", "_shape")
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


@of(("torch",), "_torch_params")
def test_noted_weights_are_those_of_now():
    import torch

    layer = keras.layers.Dense(1, use_bias=False)
    layer.build((None, 1))
    old = next(layer.parameters())
    new = torch.nn.Parameter(torch.ones(1, 1))
    _keras.put_value(layer.kernel, new)
    assert next(layer.parameters()) is old
    _keras.note_weights_anew(layer)
    assert [p is new for p in layer.parameters()] == [True]


@of(ALL, "_is_quantized")
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


@of(ALL, "_remat_mode")
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


@of(ALL, "_get_variable_index", "_momentums", "_velocities", "_velocity_hats")
def test_adams_moments_are_those_of_the_variable():
    """m = (1 - b1) g and v = (1 - b2) g^2 after one step (Kingma & Ba 2014,
    algorithm 1), with g = 2, b1 = 0.9, b2 = 0.99."""
    variables = [keras.Variable(np.zeros(1, "float32")) for _ in range(2)]
    for amsgrad in (False, True):
        adam = keras.optimizers.Adam(beta_2=0.99, amsgrad=amsgrad)
        adam.build(variables)
        adam.apply([ops.full((1,), 5.0), ops.full((1,), 2.0)], variables)
        slots = _keras.adam_slots_of(adam, variables[1])
        values = [float(to_numpy(slot.value)[0]) for slot in slots]
        expected = [0.2, 0.04, 0.04] if amsgrad else [0.2, 0.04]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@of(ALL, "_trainable_variables")
def test_an_optimizer_takes_gradients_in_the_order_of_its_variables():
    variables = [keras.Variable(np.zeros(1, "float32")) for _ in range(2)]
    sgd = keras.optimizers.SGD(1.0)
    sgd.build(variables)
    sgd.apply([ops.full((1,), 5.0), ops.full((1,), 2.0)])
    trained = _keras.variables_trained_by(sgd)
    assert [float(to_numpy(v.value)[0]) for v in trained] == [-5, -2]


@of(ALL, "_initial_epoch")
def test_fit_starts_at_the_epoch_that_is_set():
    model = small_model()

    class Resuming(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras.set_initial_epoch(self.model, 2)

    assert _keras.initial_epoch_of(model) is None
    history = fit(model, epochs=4, callbacks=[Resuming()])
    assert history.epoch == [2, 3]
    assert _keras.initial_epoch_of(model) == 2


@of(ALL, "_model")
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


@of(("tensorflow",), "_distribute_strategy", "_maybe_symbolic_build")
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


@of(("tensorflow",), "_in_multi_worker_mode")
def test_one_process_has_not_several_workers():
    """`test_distribution_tensorflow.py` trains with several."""
    import tensorflow as tf

    from keras_moe import _tensorflow

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert _tensorflow.has_several_workers(strategy) is False


@of(("tensorflow",), "record")
def test_a_tape_records():
    import tensorflow as tf

    from keras_moe import _tensorflow

    assert not _tensorflow.is_recorded()
    with tf.GradientTape() as tape:
        assert _tensorflow.is_recorded()
        with tape.stop_recording():
            assert not _tensorflow.is_recorded()


@of(("tensorflow",), "forwardprop_util")
def test_a_tangent_is_noticed():
    import tensorflow as tf

    from keras_moe import _tensorflow

    x = tf.ones(1)
    assert not _tensorflow.in_forward_mode(x)
    with tf.autodiff.ForwardAccumulator(x, tf.ones(1)):
        assert _tensorflow.in_forward_mode(x)


@of(("tensorflow",), "control_flow_util", "xla")
def test_xla_is_noticed_and_has_slices():
    import tensorflow as tf

    from keras_moe import _tensorflow

    def shifted(x, start):
        inside = _tensorflow.inside_xla()
        if not inside:
            return x, inside
        part = _tensorflow.xla_slice(x, start[None], [2])
        return _tensorflow.xla_update_slice(x, 10 * part, start[None]), inside

    x, start = tf.constant([1.0, 2.0, 3.0]), tf.constant(1)
    for compiled, expected in [(False, [1, 2, 3]), (True, [1, 20, 30])]:
        run = tf.function(shifted, jit_compile=compiled)
        y, inside = run(x, start)
        assert bool(inside) is compiled
        np.testing.assert_array_equal(y, expected)


@of(("tensorflow",), "_noinline")
def test_a_function_is_marked_as_one_of_its_own():
    import tensorflow as tf

    from keras_moe import _tensorflow

    @tf.function(experimental_attributes=_tensorflow.NOT_INLINED)
    def double(x):
        return 2 * x

    found = double.get_concrete_function(tf.TensorSpec((), tf.float32))
    assert found.function_def.attr["_noinline"].b


@of(("jax",), "get_opaque_trace_state", "_trace", "_trace_ref")
def test_a_value_belongs_to_its_trace():
    import jax

    from keras_moe import _jax

    def outer(x):
        state = _jax.trace_here()
        assert _jax.is_traced_here(x)
        assert state == _jax.trace_here() != eager

        def inner(y):
            assert state != _jax.trace_here()
            assert _jax.is_traced_here(y) and not _jax.is_traced_here(x)
            return x * y

        return jax.jit(inner)(x)

    eager = _jax.trace_here()
    x = jax.numpy.ones(2)
    assert not _jax.is_traced_here(x)
    jax.jit(outer)(x)
    assert eager == _jax.trace_here()


@of(("jax",), "Primitive", "ad", "batching", "mlir")
def test_an_identity_has_no_forward_mode():
    import jax

    from keras_moe import _jax

    def refuse(*args, **kwargs):
        raise NotImplementedError("reverse mode alone")

    same = _jax.identity_of_reverse_mode("keras_moe_test", refuse)
    x = jax.numpy.array([1.0, 2.0])
    for wrap in (lambda f: f, jax.jit, jax.vmap):
        np.testing.assert_array_equal(wrap(same)(x), x)
        slope = wrap(jax.grad(lambda x: (same(x) ** 2).sum()))
        np.testing.assert_array_equal(slope(x), 2 * x)
        with pytest.raises(NotImplementedError, match="reverse mode alone"):
            jax.jvp(wrap(same), (x,), (x,))


@of(
    ("torch",),
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_has_any_global_hook",
)
def test_every_kind_of_hook_is_noticed():
    import torch

    from keras_moe import _torch

    layer = keras.layers.Dense(1)
    layer.build((None, 1))
    everywhere = torch.nn.modules.module
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
        everywhere.register_module_forward_hook,
        everywhere.register_module_forward_pre_hook,
        everywhere.register_module_full_backward_hook,
        everywhere.register_module_full_backward_pre_hook,
    ):
        assert not _torch.has_hooks(layer)
        handle = register(lambda *args: None)
        assert _torch.has_hooks(layer), register.__name__
        handle.remove()


@of(("torch",), "_C", "_current_graph_task_id")
def test_backward_is_noticed():
    import torch

    from keras_moe import _torch

    seen = []
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda dy: seen.append(_torch.is_in_backward()))
    y = (2 * x).sum()
    assert not _torch.is_in_backward()
    y.backward()
    assert seen == [True]
    assert not _torch.is_in_backward()


@of(("torch",), "_autograd", "_top_saved_tensors_default_hooks")
def test_a_checkpoint_is_noticed_by_its_hooks():
    import torch
    from torch.utils.checkpoint import checkpoint

    from keras_moe import _torch

    seen = []

    def run(x):
        seen.append(_torch.saves_through_hooks())
        return x**2

    x = torch.ones(1, requires_grad=True)
    run(x)
    checkpoint(run, x, use_reentrant=False)
    assert seen == [False, True]


@of(("torch",), "_are_functorch_transforms_active", "_current_level")
def test_transforms_are_noticed():
    import torch
    from torch.autograd import forward_ad

    from keras_moe import _torch

    seen = []

    def run(x):
        seen.append(_torch.transforms_run())
        return x.sum()

    run(torch.ones(1))
    torch.func.grad(run)(torch.ones(1))
    torch.func.vmap(run)(torch.ones(1, 1))
    with forward_ad.dual_level():
        run(torch.ones(1))
    run(torch.ones(1))
    assert seen == [False, True, True, True, False]


@of(("torch",), "_functorch")
def test_a_batch_of_gradients_is_noticed():
    import torch

    from keras_moe import _torch

    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda dy: seen.append(_torch.is_batch_of_gradients(dy)))
    y = 2 * x
    torch.autograd.grad(y, x, torch.ones(2), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(2), is_grads_batched=True)
    assert seen == [False, True]


@of(("torch",), "_version")
def test_a_version_grows_when_a_tensor_is_written():
    import torch

    from keras_moe import _torch

    x = torch.ones(2)
    before = _torch.version_of(x)
    x + 1
    assert _torch.version_of(x) == before
    x[:1].add_(1)
    assert _torch.version_of(x) > before


@of(("torch",), "_int_mm")
def test_integers_are_multiplied():
    import torch

    from keras_moe import _torch

    assert _torch.has_integer_matmul()
    rng = np.random.default_rng(0)
    x, y = rng.integers(-128, 128, (2, 32, 32), "int8")
    out = torch.empty(32, 32, dtype=torch.int32)
    _torch.integer_matmul(torch.tensor(x), torch.tensor(y), out)
    expected = x.astype("int64") @ y.astype("int64")
    np.testing.assert_array_equal(out.numpy(), expected)


@of(("torch",), "_check")
def test_a_trace_takes_an_assumption_for_granted():
    import torch

    from keras_moe import _torch

    class Counted(torch.nn.Module):
        def forward(self, count):
            n = count.item()
            _torch.assume(n >= 2)
            return count + (1 if n >= 2 else 0)

    exported = torch.export.export(Counted(), (torch.tensor(3),))
    assert exported.module()(torch.tensor(5)) == 6
    with pytest.raises(RuntimeError):
        _torch.assume(False)
