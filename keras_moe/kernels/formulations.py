"""The switch with which users force a formulation."""

import contextlib
from collections.abc import Iterator

from keras_moe.kernels.backend import backend
from keras_moe.kernels.forced import forcing


def formulations() -> tuple[str, ...]:
    """Return the names of the running backend's formulations.

    Example:

    ```python
    names = keras_moe.kernels.formulations()
    ```
    """
    return tuple(backend.FORMULATIONS)


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Force a formulation for what is traced or run inside the `with` block.

    The formulations `tensorflow_xla...` run only inside `jit_compile=True`,
    TensorFlow's others only outside of it.

    `"reference"` also enables derivatives of every kind: it consists of
    operations that the backend itself differentiates, in both modes and to
    any order. It costs as much as all E experts. Without it:

    - Second derivatives in reverse mode are right on every backend
      (`torch.autograd.grad` with `create_graph=True`, `jax.grad` of
      `jax.grad`, nested `tf.GradientTape`s), e.g. for a gradient penalty.
    - Forward mode (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) raises a
      `NotImplementedError` on JAX that names this switch. On TensorFlow
      it works, at the cost of the reference, if the block is traced or run
      inside the `tf.autodiff.ForwardAccumulator`.
    - `torch.func` and forward mode work on PyTorch. Under `torch.func.vmap`
      the cost is that of the reference.

    Args:
        name: str. `"reference"`, or one of `formulations()`.

    Example:

    ```python
    with keras_moe.kernels.use("reference"):
        curvature = jax.hessian(loss)(x)
    ```

    Raises:
        ValueError: If `name` is neither `"reference"` nor in
            `formulations()`.
    """
    allowed = ("reference", *formulations())
    if name not in allowed:
        raise ValueError(
            f"`name` must be one of {allowed}, the formulations of the running "
            f"backend. Received: name={name!r}. To use a formulation of "
            "another backend, set KERAS_BACKEND."
        )
    with forcing(name):
        yield
