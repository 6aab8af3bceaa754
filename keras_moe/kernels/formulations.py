"""Which formulation computes: one that is forced, or the backend's choice.

P rows, E groups. A formulation is a module with the same two functions. `use`
forces one; otherwise `formulation_for` in the running backend's folder decides
from the device and from sizes that are known when the call is traced.
"""

import contextlib
from collections.abc import Iterator

from keras_moe.kernels import reference
from keras_moe.kernels.backend import backend
from keras_moe.kernels.forced import forced, forcing, is_reference
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.types import Tensor


def formulations() -> tuple[str, ...]:
    """Returns the names of the running backend's formulations."""
    return tuple(backend.FORMULATIONS)


def implementation(x: Tensor, kernel: Tensor) -> Formulation:
    """Returns the module for rows `x` `(P, D)` and a kernel `(E, D, F)`."""
    name = forced() or backend.formulation_for(x, kernel.shape[0])
    return reference if name == "reference" else backend.FORMULATIONS[name]


def quantized_implementation() -> QuantizedFormulation:
    """Returns the module for kernels of 8 or 4 bits."""
    return reference if is_reference() else backend.quantized_formulation()


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
