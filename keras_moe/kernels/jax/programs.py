"""JAX: whole programs and gradients."""

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


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Nests inside the gradient of a training step."""
    return jax.value_and_grad(function)(x)
