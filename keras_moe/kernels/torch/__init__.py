"""PyTorch: what `kernels` runs here, and which formulation is taken when.

P rows, E groups. S, M, L, D1, and D8 are those of `benchmarks/`, which
measures every formulation.
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
    """CUDA: no count on the host. On CPU `torch_split` keeps an expert's
    hidden rows in cache and writes each gradient where the last one was:
    forward and backward of L and M take 0.82 and 0.85 of the time of
    `torch_grouped_mm`, S as long. For one or two rows a group that one, which
    goes through one bank after the other (D8 0.91 to 0.97, D1 0.96 to 0.99 of
    `torch_split`). An export and `torch.func` take neither."""
    if is_exported() or is_transformed():
        return "torch_unrolled"
    few = x.shape[0] <= 2 * num_groups and not torch.is_grad_enabled()
    if few or x.device.type == "cuda":
        return "torch_grouped_mm"
    return "torch_split"


def quantized_formulation() -> QuantizedFormulation:
    """Whatever the sizes, but for what an export and `torch.func` take."""
    exported = is_exported() or is_transformed()
    if exported or forced() == "torch_unrolled":
        return unrolled
    return quantized
