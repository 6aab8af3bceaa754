"""Floor 0: the heavy work, and everything that differs between backends.

`backend.py` selects the running backend's folder once, `protocol/` lists what
each folder provides, and the tests compare every formulation with
`reference.py`. `grouped.py` has the kernels, `row_ops.py` the operations of
dispatch and combine, and `layer_hooks.py` the functions by which layers use
their backend.
"""

from keras_moe.kernels.backend import backend
from keras_moe.kernels.captured import captured_by
from keras_moe.kernels.exchange import Bank, ExpertShard, Pairs, Part
from keras_moe.kernels.formulations import formulations, use
from keras_moe.kernels.gated_units import ClippedSwiGLU
from keras_moe.kernels.grouped import (
    ffn,
    grouped_ffn,
    grouped_matmul,
    implementation,
    light_activation,
    stacked_ffn,
)
from keras_moe.kernels.layer_hooks import (
    adam_step,
    assign_once,
    call_part,
    first_value,
    is_recomputing,
    is_traced_here,
    keep_losses_apart,
    may_be_repeated,
    repeatable,
    settle,
    trace_here,
    untraced_zero,
    writes_leave_traces,
)
from keras_moe.kernels.map_groups import map_groups
from keras_moe.kernels.programs import Programs, compiled, value_and_gradient
from keras_moe.kernels.quantized import QuantizedKernel, Rounding
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.replicas import (
    mean_of_units,
    mean_over_replicas,
    sum_over_replicas,
)
from keras_moe.kernels.row_ops import (
    gathered_sum,
    group_sizes_of,
    inverse_permutation,
    known_int,
    light_ops,
    linear_map,
    map_entries,
    num_available,
    require,
    row_of_each,
    shape_of_count,
    shapes_known,
    smaller_size,
    sort_groups,
    take_columns,
    take_rows,
    top_k_index,
)

__all__ = [
    "Bank",
    "ClippedSwiGLU",
    "ExpertShard",
    "FFNWeights",
    "Pairs",
    "Part",
    "Programs",
    "QuantizedKernel",
    "Rounding",
    "adam_step",
    "assign_once",
    "call_part",
    "captured_by",
    "compiled",
    "ffn",
    "first_value",
    "formulations",
    "gathered_sum",
    "group_sizes_of",
    "grouped_ffn",
    "grouped_matmul",
    "implementation",
    "inverse_permutation",
    "is_recomputing",
    "is_spread",
    "is_traced_here",
    "known_int",
    "keep_losses_apart",
    "light_activation",
    "light_ops",
    "linear_map",
    "map_entries",
    "map_groups",
    "may_be_repeated",
    "mean_of_units",
    "mean_over_replicas",
    "mix_across",
    "num_available",
    "num_token_shards",
    "repeatable",
    "require",
    "row_of_each",
    "settle",
    "shape_of_count",
    "shapes_known",
    "smaller_size",
    "sort_groups",
    "stacked_ffn",
    "sum_over_replicas",
    "take_columns",
    "take_rows",
    "top_k_index",
    "trace_here",
    "untraced_zero",
    "use",
    "value_and_gradient",
    "writes_leave_traces",
]

# The running backend's functions, which `protocol/` describes.
is_spread = backend.is_spread
mix_across = backend.mix_across
num_token_shards = backend.num_token_shards
