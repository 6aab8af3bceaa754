"""JAX: compile and differentiate whole functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras

from keras_moe.types import Tensor


def compiled(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable],
    written: Sequence[keras.Variable] = (),
) -> Callable[..., Any]:
    """Pass the variables as arguments: otherwise they would be constants."""
    variables = list(variables)

    @jax.jit
    def run(values: Sequence[Tensor], *args: Any) -> tuple[Any, list[Tensor]]:
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            outputs = function(*args)
        return outputs, [scope.get_current_value(v) for v in written]

    def call(*args: Any) -> Any:
        outputs, new_values = run([v.value for v in variables], *args)
        for variable, value in zip(written, new_values, strict=True):
            variable.assign(value)
        return outputs

    return call


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Use `jax.value_and_grad`, which works inside of other gradients."""
    found: tuple[Tensor, Tensor] = jax.value_and_grad(function)(x)
    return found
