"""The names that type annotations share.

Axis letters in every file that holds tensors: **T** tokens, **D** hidden_dim,
**F** intermediate_dim, **E** experts, **K** top_k, **C** expert_capacity,
**P** routed pairs (T * K for token choice, E * C for expert choice).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the running backend (or a symbolic `keras.KerasTensor`)."""

Shape: TypeAlias = Sequence[int | None]
"""A static shape; `None` stands for a dimension known only at run time."""

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""An elementwise function of a tensor, such as `keras.activations.relu`."""
