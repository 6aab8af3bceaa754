"""Compute gradients of gradients on the active backend."""

from backend import BACKEND, to_numpy
from keras import ops


def second_gradients(function, *arrays, compiled=False):
    """Return the gradients of a gradient penalty, as a list of arrays.

    The penalty is the sum of squares of the gradients of `sum(sin(f))`. Both
    gradients are with respect to the arrays of floats. If `compiled` is true,
    the function runs under `jax.jit` or `tf.function` (with
    `jit_compile=True` if `compiled` is `"xla"`).
    """
    run = {"jax": _by_jax, "torch": _by_torch, "tensorflow": _by_tensorflow}
    tensors = [ops.convert_to_tensor(a) for a in arrays]
    gradients = run[BACKEND](function, tensors, compiled)
    return [to_numpy(g) for g in gradients]


def _is_float(tensor):
    return "float" in str(tensor.dtype)


def _total(function, tensors):
    return ops.sum(ops.sin(function(*tensors)))


def _by_jax(function, tensors, compiled):
    import jax

    floats = tuple(i for i, t in enumerate(tensors) if _is_float(t))

    def penalty(*tensors):
        first = jax.grad(lambda *t: _total(function, t), floats)(*tensors)
        return sum(ops.sum(g**2) for g in first)

    run = jax.grad(penalty, floats)
    return (jax.jit(run) if compiled else run)(*tensors)


def _by_torch(function, tensors, compiled):
    import torch

    tensors = [t.detach() for t in tensors]
    floats = [t.requires_grad_() for t in tensors if _is_float(t)]
    first = torch.autograd.grad(
        _total(function, tensors), floats, create_graph=True
    )
    return torch.autograd.grad(sum((g**2).sum() for g in first), floats)


def _by_tensorflow(function, tensors, compiled):
    import tensorflow as tf

    def run(*tensors):
        floats = [t for t in tensors if _is_float(t)]
        with tf.GradientTape() as outer:
            outer.watch(floats)
            with tf.GradientTape() as inner:
                inner.watch(floats)
                total = _total(function, tensors)
            first = inner.gradient(total, floats)
            penalty = sum(
                tf.reduce_sum(tf.convert_to_tensor(g) ** 2) for g in first
            )
        second = outer.gradient(penalty, floats)
        return [tf.convert_to_tensor(g) for g in second]

    if compiled:
        run = tf.function(run, jit_compile=compiled == "xla")
    return run(*tensors)
