"""Which formulation computes: one rule a backend, and what it rests on.

P rows, E groups. Every formulation is a module of this folder
with the same two functions. `use` forces one; otherwise the running backend's
rule decides from the device and from sizes that are known when the call is
traced. S, L, D1, D8, `limit` and `limitE` are those of `benchmarks/`, which
measures every formulation.
"""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import keras

from keras_moe.types import Tensor

_forced: list[str] = []
_modules: dict[str, ModuleType] = {}


def formulations() -> tuple[str, ...]:
    """Returns the names of the formulations that this installation has."""
    backend = keras.backend.backend()
    names: tuple[str, ...] = ()
    if backend in _RULES:
        names = _RULES[backend][0]
    if backend == "torch" and not _has_grouped_mm():
        names = tuple(name for name in names if name != "torch_grouped_mm")
    return names


def implementation(x: Tensor, kernel: Tensor) -> ModuleType:
    """Returns the module for rows `x` `(P, D)` and a kernel `(E, D, F)`."""
    backend = keras.backend.backend()
    if _forced:
        name = _forced[-1]
    elif backend in _RULES:
        name = _RULES[backend][1](x, kernel.shape[0])
    else:
        name = "reference"
    return _module(name)


def quantized_implementation() -> ModuleType:
    """Returns the module for kernels of 8 or 4 bits: one a backend, whatever
    the sizes, but for XLA and exports; and what `use` asks for, where it can
    multiply by them."""
    name = _QUANTIZED.get(keras.backend.backend(), "reference")
    if _forced and _forced[-1] in ("reference", "torch_unrolled"):
        name = _forced[-1]
    elif name == "tensorflow_quantized":
        from keras_moe.kernels.tensorflow_primitives import inside_xla

        name += "_xla" * inside_xla()
    elif name == "torch_quantized":
        from keras_moe.kernels.torch_ops import is_exported
        from keras_moe.kernels.torch_transforms import is_transformed

        if is_exported() or is_transformed():
            name = "torch_unrolled"
    return _module(name)


def _module(name):
    if name not in _modules:
        path = f"keras_moe.kernels.{name}"
        _modules[name] = importlib.import_module(path)
    return _modules[name]


def is_reference() -> bool:
    """Returns whether `use("reference")` is in effect."""
    return bool(_forced) and _forced[-1] == "reference"


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
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def context() -> tuple:
    """Returns what a traced program depends on beside its function: the forced
    formulation, `keras.distribution`, and the floatx."""
    distribution = keras.distribution.distribution()
    return tuple(_forced), distribution, keras.config.floatx()


def _jax(x, num_groups):
    """Accelerators have a grouped matmul of their own; on CPU it multiplies
    every row by every matrix. Without copies of the weights up to 8 rows a
    group: D1 0.94 times `limitE` where blocks take 6.8, D8 0.89 for 4.4; at
    64 experts of D = F = 512 and 8 rows a group 0.9 of blocks' time, at 16
    rows 1.3. Where the number of rows is symbolic (`jax.export`, or a model
    of the user's own on `keras.Input`), blocks need no number."""
    import jax

    if jax.default_backend() != "cpu":
        return "jax_ragged_dot"
    known = isinstance(x.shape[0], int)
    if known and x.shape[0] <= 8 * num_groups:
        return "jax_few_rows"
    return "jax_blocks"


def _tensorflow(x, num_groups):
    """XLA has no slices of unknown length: blocks inside `jit_compile=True`;
    without copies of the weights up to 8 rows a group, as on JAX (D1 0.84
    times `limitE`, blocks 6.1). Elsewhere unrolled (S f+b 1.23 times `limit`,
    a loop 1.37), but for many experts where a tape records: 24 blocks of 128
    took two minutes to trace, the loop 11 seconds. `predict` and `export`
    record nothing, and LiteRT has no such loop. The gradients written by hand
    have no forward mode."""
    from tensorflow.python.eager import record

    from keras_moe.kernels.tensorflow_primitives import (
        in_forward_mode,
        inside_xla,
    )

    if in_forward_mode(x):
        return "reference"
    if inside_xla():
        few = x.shape[0] is not None and x.shape[0] <= 8 * num_groups
        return "tensorflow_xla" + "_few_rows" * (few and _all_on_cpu())
    if record.could_possibly_record() and num_groups > 8:
        return "tensorflow_loop"
    return "tensorflow_split"


def _all_on_cpu():
    import tensorflow as tf

    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def _torch(x, num_groups):
    """CUDA: no count on the host. On CPU `torch_split` keeps an expert's
    hidden rows in cache and writes each gradient where the last one was:
    forward and backward of L and M take 0.82 and 0.85 of the time of
    `torch_grouped_mm`, S as long. For one or two rows a group that one, which
    goes through one bank after the other (D8 0.91 to 0.97, D1 0.96 to 0.99 of
    `torch_split`). An export and `torch.func` take neither."""
    import torch

    from keras_moe.kernels.torch_ops import is_exported
    from keras_moe.kernels.torch_transforms import is_transformed

    if is_exported() or is_transformed():
        return "torch_unrolled"
    if not _has_grouped_mm():
        return "torch_split"
    few = x.shape[0] <= 2 * num_groups and not torch.is_grad_enabled()
    if few or x.device.type == "cuda":
        return "torch_grouped_mm"
    return "torch_split"


def _has_grouped_mm():
    """Whether this release of torch has it; 2.6, the least we ask for, not."""
    import torch

    return hasattr(torch.nn.functional, "grouped_mm")


_QUANTIZED = {
    name: f"{name}_quantized" for name in ("jax", "tensorflow", "torch")
}
_RULES = {
    "jax": (("jax_blocks", "jax_few_rows", "jax_ragged_dot"), _jax),
    "tensorflow": (
        (
            "tensorflow_loop",
            "tensorflow_split",
            "tensorflow_xla",
            "tensorflow_xla_few_rows",
        ),
        _tensorflow,
    ),
    "torch": (("torch_split", "torch_grouped_mm", "torch_unrolled"), _torch),
}
