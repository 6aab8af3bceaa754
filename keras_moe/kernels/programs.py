"""Compiled programs that are kept from call to call."""

import threading
from collections.abc import Callable, Hashable, Sequence

import keras

from keras_moe.kernels.captured import captured_by
from keras_moe.kernels.primitives import compiled

SIZE = 32  # programs of one owner


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
