"""JAX: the primitives that keras.ops has not.

What each does is said in `primitives.py`.
"""

from collections.abc import Callable

import jax

from keras_moe.types import Tensor


def require(valid: Tensor, message: str) -> Tensor:
    """Not while `jax.jit`, `grad` or `vmap` trace."""
    if not isinstance(valid, jax.core.Tracer) and not bool(valid.all()):
        raise ValueError(message)
    return valid


def shapes_known(x: Tensor) -> str:
    """All of them, always: other sizes are another program."""
    return "sizes"


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Nests inside the gradient of a training step."""
    return jax.value_and_grad(function)(x)
