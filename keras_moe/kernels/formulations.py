"""The switch by which users force a formulation."""

import contextlib
from collections.abc import Iterator

from keras_moe.kernels.backend import backend
from keras_moe.kernels.forced import forcing


def formulations() -> tuple[str, ...]:
    """Returns the names of the running backend's formulations."""
    return tuple(backend.FORMULATIONS)


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Forces a formulation for what is traced or run inside the `with`.

    `tensorflow_xla...` run inside `jit_compile=True` alone, TensorFlow's others
    outside of it.

    `"reference"` is also the switch for derivatives of every kind: it consists
    of operations that the backend itself differentiates, in both modes and to
    any order. Its cost is that of all E experts. Without it:

    - Second derivatives in reverse mode are right on every backend
      (`torch.autograd.grad` with `create_graph=True`, `jax.grad` of
      `jax.grad`, nested `tf.GradientTape`s), e.g. for a gradient penalty.
    - Forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) raises a
      `NotImplementedError` on JAX that names this switch. On TensorFlow
      it works, at the cost of the reference, where the block is traced or run
      inside the `tf.autodiff.ForwardAccumulator`.
    - `torch.func` and forward mode work on PyTorch. Under `torch.func.vmap`
      the cost is that of the reference.

    Args:
        name: `"reference"`, or one of `formulations()`.

    Example:

    ```python
    with keras_moe.kernels.use("reference"):
        curvature = jax.hessian(loss)(x)
    ```

    Raises:
        ValueError: where `name` is neither.
    """
    allowed = ("reference", *formulations())
    if name not in allowed:
        raise ValueError(
            f"`name` must be one of {allowed}: kernels run on the backend that "
            f"is running. Received: name={name!r}. Set KERAS_BACKEND to use "
            "another backend's."
        )
    with forcing(name):
        yield
