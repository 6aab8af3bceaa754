"""JAX: the primitives that keras.ops has not.

What each does is said in `primitives.py`.
"""

from collections.abc import Callable, Sequence

import jax
import keras

from keras_moe.types import Tensor


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """Variables would be constants of the program: they are arguments."""
    variables = list(variables)

    @jax.jit
    def run(values, *args):
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            outputs = function(*args)
        return outputs, [scope.get_current_value(v) for v in written]

    def call(*args):
        outputs, new_values = run([v.value for v in variables], *args)
        for variable, value in zip(written, new_values, strict=True):
            variable.assign(value)
        return outputs

    return call


def require(valid: Tensor, message: str) -> Tensor:
    """Not while `jax.jit`, `grad` or `vmap` trace."""
    if not isinstance(valid, jax.core.Tracer) and not bool(valid.all()):
        raise ValueError(message)
    return valid
