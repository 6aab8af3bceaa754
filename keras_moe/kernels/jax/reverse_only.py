"""JAX: functions with a hand-written gradient for reverse mode.

JAX has no forward-mode derivative of a `jax.custom_vjp`. Its error names no
remedy, and inside `jax.jit` it is raised outside of this package's code. Here
the arguments pass through an identity, whose forward-mode derivative raises an
error that names the remedy.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from keras_moe._jax import identity_of_reverse_mode
from keras_moe.kernels.jax.varying import varying_alike
from keras_moe.types import Tensor

MESSAGE = (
    "The mixture has no forward-mode derivative on JAX (`jax.jvp`, "
    "`jax.jacfwd`, `jax.hessian`, `jax.linearize`): the gradients of its "
    "kernels are written by hand, for reverse mode. Received: a tangent. Call "
    'it inside `with keras_moe.kernels.use("reference"):`, whose operations '
    "JAX differentiates in both modes and to any order, or take derivatives "
    "in reverse mode alone: `jax.jacrev(jax.grad(f))` for `jax.hessian(f)`."
)


class ReverseOnly:
    """A `jax.custom_vjp` that raises a clear error in forward mode.

    Args:
        function: Function of arrays, or pytrees of arrays.
        static: Number of leading arguments that are not arrays; they also
            come first in both functions that `defvjp` takes.

    Raises:
        NotImplementedError: If a forward-mode derivative is computed; inside
            `jax.jit`, when the program is compiled.
    """

    def __init__(self, function: Callable[..., Any], static: int = 0) -> None:
        self.static = static
        numbers = tuple(range(static))
        self.ruled = jax.custom_vjp(function, nondiff_argnums=numbers)

    def defvjp(
        self,
        forward: Callable[..., tuple[Any, Any]],
        backward: Callable[..., tuple[Any, ...]],
    ) -> None:
        """Set the functions of the gradient, like `jax.custom_vjp.defvjp`."""
        self.ruled.defvjp(forward, backward)

    def __call__(self, *args: Any) -> Any:
        """Return the function's value."""
        static, arrays = args[: self.static], args[self.static :]
        arrays = varying_alike(arrays)
        return self.ruled(*static, *jax.tree.map(_identity, arrays))


def second_gradients(
    matmul: Callable[..., Tensor],
    gradients: Callable[..., tuple[Tensor, Tensor]],
    residuals: tuple[Tensor, Tensor, Tensor, Tensor],
    cotangents: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the gradients of a grouped matmul.

    The gradients of a product are two products, whose gradients are products.

    Args:
        matmul: `matmul(x, kernel, group_sizes)`.
        gradients: `gradients(x, kernel, group_sizes, dy)`, those of `x` and
            of `kernel`.
        residuals: The arguments of `gradients`.
        cotangents: The cotangents of the two gradients.
    """
    x, kernel, group_sizes, dy = residuals
    d_dx, d_dkernel = cotangents
    dx, dkernel = gradients(d_dx, d_dkernel, group_sizes, dy)
    d_dy = matmul(d_dx, kernel, group_sizes)
    d_dy = d_dy + matmul(x, d_dkernel, group_sizes)
    return dx, dkernel, None, d_dy


def _identity(x: Tensor) -> Tensor:
    return _reverse_only(x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError(MESSAGE)


_reverse_only = identity_of_reverse_mode("keras_moe_reverse_only", _refuse)
