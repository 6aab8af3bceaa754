"""Compile, cache, and differentiate whole functions."""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
from keras import ops

from keras_moe.kernels.backend import backend
from keras_moe.kernels.captured import captured_by
from keras_moe.kernels.forced import context
from keras_moe.types import Tensor

SIZE = 32  # programs per owner


def compiled(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable],
    written: Sequence[keras.Variable] = (),
) -> Callable[..., Any]:
    """Return a function that is compiled once for each shape.

    It is compiled by `jax.jit`, with the variables as arguments, so that it
    uses their later values, or by `tf.function`. On PyTorch, and on other
    backends, the function itself runs. Gradients do not flow through it. Each
    formulation that `kernels.use` forces has a program of its own. Whatever
    else the function captured must not change while the program is in use;
    otherwise use `Programs`.

    Args:
        function: Function of tensors that returns tensors.
        variables: Every `keras.Variable` that the function reads.
        written: The variables among them that the function assigns. Defaults
            to none.
    """
    kept: dict[Hashable, Callable[..., Any]] = {}

    def call(*args: Any) -> Any:
        now = context()
        if now not in kept:
            kept[now] = backend.compiled(function, variables, written)
        return kept[now](*args)

    return call


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a function's value and its gradient with respect to `x`.

    Both are constants: no gradient flows through them, neither to `x` nor to
    weights that the function reads.

    Args:
        function: Function from a tensor like `x` to a scalar. It is called
            once.
        x: float, any shape.

    Returns:
        The scalar, and a tensor like `x`, which is zero if the function does
        not depend on `x`.

    Raises:
        NotImplementedError: If the backend is not JAX, TensorFlow, or PyTorch.
    """
    x = ops.stop_gradient(ops.convert_to_tensor(x))
    value, gradient = backend.value_and_gradient(function, x)
    return ops.stop_gradient(value), ops.stop_gradient(gradient)


class Programs:
    """A cache of a model's compiled programs, by what their functions captured.

    Another captured value (a length, a sampler, a layer that was quantized or
    got another dtype policy) needs another program. At most 32 programs are
    kept. All are dropped if the model has replaced a variable.

    Args:
        owner: The model whose programs are kept.
    """

    def __init__(self, owner: keras.layers.Layer) -> None:
        self._owner = owner
        self._kept: dict[Hashable, Callable[..., Any]] = {}
        self._variables: list[keras.Variable] = []
        self._lock = threading.Lock()

    def of(
        self,
        function: Callable[..., Any],
        written: Sequence[keras.Variable] = (),
    ) -> Callable[..., Any]:
        """Return a compiled function, an earlier one if it captured the same.

        Args:
            function: Function of tensors that returns tensors. Whatever it
                reads besides its arguments must be reached through its
                closure.
            written: The variables that it assigns. Defaults to none.
        """
        if keras.backend.backend() not in ("jax", "tensorflow"):
            return compiled(function, (), written)  # the function itself
        key, variables = captured_by(function)
        with self._lock:
            program = self._kept.pop(key, None)
            if program is None:
                self._forget()
                known = {id(v) for v in variables}
                variables += [v for v in written if id(v) not in known]
                program = compiled(function, variables, written)
            self._kept[key] = program  # in the order of their last use
            while len(self._kept) > SIZE:
                del self._kept[next(iter(self._kept))]
        return program

    def _forget(self) -> None:
        """Drop all programs if the owner has replaced variables."""
        variables = self._owner.variables
        if list(map(id, variables)) != list(map(id, self._variables)):
            self._kept.clear()
            self._variables = list(variables)
