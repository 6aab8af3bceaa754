"""Whole programs: compiled, kept from call to call, differentiated."""

import threading
from collections.abc import Callable, Hashable, Sequence

import keras
from keras import ops

from keras_moe.kernels.backend import backend
from keras_moe.kernels.captured import captured_by
from keras_moe.kernels.forced import context
from keras_moe.types import Tensor

SIZE = 32  # programs of one owner


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """Returns `function` as a program that is compiled once for each shape.

    `jax.jit` with the variables as arguments, so that later values are seen;
    `tf.function`; on PyTorch, and elsewhere, the function itself. Gradients
    do not flow through it. Each formulation that `kernels.use` forces has a
    program of its own. What else the function captured must not change as
    long as the program is used: `Programs` is for functions where it may.

    Args:
        function: of tensors, returns tensors.
        variables: every `keras.Variable` that the function reads.
        written: those among them that it assigns.
    """
    kept: dict = {}

    def call(*args):
        now = context()
        if now not in kept:
            kept[now] = backend.compiled(function, variables, written)
        return kept[now](*args)

    return call


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns a function's value and its gradient with respect to `x`.

    Both are constants to whoever differentiates around it: no gradient flows
    out of them, neither to `x` nor to weights that the function reads.

    Args:
        function: from a tensor like `x` to a scalar. It is called once.
        x: float, any shape.

    Returns:
        The scalar, and a tensor like `x`; zeros where the function does not
        depend on it.

    Raises:
        NotImplementedError: on a backend other than the three.
    """
    x = ops.stop_gradient(ops.convert_to_tensor(x))
    value, gradient = backend.value_and_gradient(function, x)
    return ops.stop_gradient(value), ops.stop_gradient(gradient)


class Programs:
    """The compiled programs of a model, each under what its function captured.

    A change of what was captured (another length, another sampler, a layer
    that was quantized or got another dtype policy) is another program. At most
    32 are kept. Those of variables that the model no longer has are dropped.

    Args:
        owner: the model whose programs these are.
    """

    def __init__(self, owner: keras.layers.Layer):
        self._owner = owner
        self._kept: dict[Hashable, Callable] = {}
        self._variables: list = []
        self._lock = threading.Lock()

    def of(self, function: Callable, written: Sequence = ()) -> Callable:
        """Returns a function compiled, by an earlier call if that fits.

        Args:
            function: of tensors, returns tensors. Whatever it reads beside
                its arguments must be reached through its closure.
            written: the variables among those that it assigns.
        """
        if keras.backend.backend() not in ("jax", "tensorflow"):
            return compiled(function, (), written)  # runs as it is
        key, variables = captured_by(function)
        with self._lock:
            program = self._kept.pop(key, None)
            if program is None:
                self._forget()
                known = {id(v) for v in variables}
                variables += [v for v in written if id(v) not in known]
                program = compiled(function, variables, written)
            self._kept[key] = program  # the last one used is the last
            while len(self._kept) > SIZE:
                del self._kept[next(iter(self._kept))]
        return program

    def _forget(self):
        """Drops what holds variables that the owner has replaced."""
        variables = self._owner.variables
        if list(map(id, variables)) != list(map(id, self._variables)):
            self._kept.clear()
            self._variables = list(variables)
