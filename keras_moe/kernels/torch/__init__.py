"""PyTorch: the functions of `kernels`, and the choice of a formulation.

P rows, E groups. `benchmarks/published/report.md` compares the formulations.
"""

import torch

from keras_moe.kernels.forced import forced
from keras_moe.kernels.generic import (
    is_spread,
    is_traced_here,
    keep_losses_apart,
    num_token_shards,
    output_shapes,
    outside_of_traces,
    smaller_size,
    trace_here,
    varying_alike,
    writes_leave_traces,
)
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.kernels.torch import (
    grouped_mm,
    light_ops,
    quantized,
    split,
    unrolled,
)
from keras_moe.kernels.torch.activation import light_activation
from keras_moe.kernels.torch.exchange import mix_across
from keras_moe.kernels.torch.layer_hooks import adam_step, needs_a_full_call
from keras_moe.kernels.torch.memory import settle
from keras_moe.kernels.torch.programs import compiled, value_and_gradient
from keras_moe.kernels.torch.recomputation import (
    first_value,
    is_recomputing,
    may_be_repeated,
    repeatable,
)
from keras_moe.kernels.torch.replicas import num_replicas, sum_over_replicas
from keras_moe.kernels.torch.row_ops import (
    gathered_sum,
    group_sizes_of,
    inverse_permutation,
    known_int,
    linear_map,
    map_entries,
    require,
    row_of_each,
    shape_of_count,
    shapes_known,
    sort_few_groups,
    take_columns,
    take_rows,
    top_k_index,
)
from keras_moe.kernels.torch.tracing import is_exported, is_transformed
from keras_moe.types import Tensor

FORMULATIONS: dict[str, Formulation] = {
    "torch_split": split,
    "torch_grouped_mm": grouped_mm,
    "torch_unrolled": unrolled,
}


def formulation_for(x: Tensor, num_groups: int) -> str:
    """Return the name of the formulation for rows `x` `(P, D)`.

    An export and `torch.func` can follow only `torch_unrolled`. On CUDA,
    `torch_grouped_mm` reads no counts on the host. On CPU, `torch_split` keeps
    an expert's hidden rows in cache and reuses the memory of the last
    gradient. For predictions with at most two rows per group,
    `torch_grouped_mm` is faster, which reads one bank after the other.
    """
    if is_exported() or is_transformed():
        return "torch_unrolled"
    few = x.shape[0] <= 2 * num_groups and not torch.is_grad_enabled()
    if few or x.device.type == "cuda":
        return "torch_grouped_mm"
    return "torch_split"


def quantized_formulation() -> QuantizedFormulation:
    """Return `unrolled` for exports and `torch.func`, otherwise `quantized`."""
    traced = is_exported() or is_transformed()
    if traced or forced() == "torch_unrolled":
        return unrolled
    return quantized
