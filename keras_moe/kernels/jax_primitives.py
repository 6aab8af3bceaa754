"""JAX: the primitives that keras.ops has not.

What each does is said in `primitives.py`.
"""

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
