"""Compute values and gradients on the active backend."""

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()
# Options that override the flags with which conftest.py disables optimizations.
XLA_OPTIMIZES = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
}


def draw(rng, *shape):
    """Return standard normal numbers, float32."""
    return rng.normal(size=shape).astype("float32")


def to_numpy(tensor):
    """Return a tensor as a NumPy array, floats as float32."""
    if BACKEND == "torch":
        tensor = ops.convert_to_tensor(tensor).detach()
    array = ops.convert_to_numpy(tensor)
    if "float" in str(array.dtype):
        array = array.astype("float32")
    return np.asarray(array)


def value_and_gradients(function, *arrays, compiled=False):
    """Return `function(*arrays)` and the gradients of its weighted sum.

    The weights of the sum are fixed random numbers, so that the gradients
    depend on every element. Arrays of integers have no gradient. If `compiled`
    is true, the function runs under `jax.jit`, with the optimizations that
    users have, or under `tf.function` (with `jit_compile=True` if `compiled`
    is `"xla"`).
    """
    return differentiated(function, compiled)(*arrays)


def differentiated(function, compiled=False):
    """Return `value_and_gradients` as a function of the arrays.

    If `compiled` is true, it is compiled once for all arrays of equal shapes.
    """
    if BACKEND == "torch":
        run = _by_torch(function)
    elif BACKEND == "jax":
        run = _by_jax(function, compiled)
    else:
        run = _by_tensorflow(function, compiled)

    def run_arrays(*arrays):
        y, gradients = run(*(ops.convert_to_tensor(a) for a in arrays))
        return to_numpy(y), [to_numpy(g) for g in gradients]

    return run_arrays


def predicted(function, compiled=False):
    """Return `function` as a function of arrays, without gradients."""
    if BACKEND == "jax" and compiled:
        import jax

        run = jax.jit(function, compiler_options=XLA_OPTIMIZES)
    elif BACKEND == "tensorflow" and compiled:
        import tensorflow as tf

        run = tf.function(function, jit_compile=compiled == "xla")
    elif BACKEND == "torch":
        import torch

        run = torch.no_grad()(function)
    else:
        run = function
    return lambda *arrays: to_numpy(
        run(*(ops.convert_to_tensor(a) for a in arrays))
    )


def _by_jax(function, compiled):
    import jax

    def run(*tensors):
        floats = tuple(i for i, t in enumerate(tensors) if _is_float(t))

        def total(*tensors):
            y = function(*tensors)
            return _weighted_sum(y), y

        run = jax.value_and_grad(total, argnums=floats, has_aux=True)
        (_, y), gradients = run(*tensors)
        return y, gradients

    if compiled:
        run = jax.jit(run, compiler_options=XLA_OPTIMIZES)
    return run


def _by_torch(function):
    def run(*tensors):
        tensors = [t.detach() for t in tensors]
        floats = [t.requires_grad_() for t in tensors if _is_float(t)]
        y = function(*tensors)
        _weighted_sum(y).backward()
        return y, [t.grad for t in floats]

    return run


def _by_tensorflow(function, compiled):
    import tensorflow as tf

    def run(*tensors):
        floats = [t for t in tensors if _is_float(t)]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = function(*tensors)
            total = _weighted_sum(y)
        return y, tape.gradient(total, floats)

    if compiled:
        run = tf.function(run, jit_compile=compiled == "xla")
    return run


def _is_float(tensor):
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def layer_gradients(layer, x, *, training=False, **kwargs):
    """Return a layer's output and the gradients of its weighted sum.

    The keys of the gradients are `"inputs"` and each trainable weight's path
    below the layer. Losses added by the layer are not part of the sum.
    """
    layer(ops.convert_to_tensor(x), training=training, **kwargs)  # build
    variables = layer.trainable_variables
    names = [v.path.split("/", 1)[1] for v in variables]
    if BACKEND == "jax":
        frozen = [v.value for v in layer.non_trainable_variables]

        def function(x, *weights):
            y, _ = layer.stateless_call(
                weights, frozen, x, training=training, **kwargs
            )
            return y

        values = [v.value for v in variables]
        y, gradients = value_and_gradients(function, x, *values)
    elif BACKEND == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        layer.zero_grad()
        y = layer(x, training=training, **kwargs)
        _weighted_sum(y).backward()
        gradients = [x.grad, *(v.value.grad for v in variables)]
    else:
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        values = [v.value for v in variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training, **kwargs)
            total = _weighted_sum(y)
        gradients = tape.gradient(total, [x, *values])
    gradients = [to_numpy(g) for g in gradients]
    return to_numpy(y), dict(zip(["inputs", *names], gradients, strict=True))


def upstream(shape):
    """Return the fixed weights of the sum that is differentiated."""
    return np.random.default_rng(7).normal(size=tuple(shape)).astype("float32")


def _weighted_sum(y):
    return ops.sum(ops.multiply(ops.cast(y, "float32"), upstream(y.shape)))
