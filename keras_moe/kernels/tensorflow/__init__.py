"""TensorFlow: what `kernels` runs here, and which formulation is taken when.

P rows, E groups. S, D1, `limit`, and `limitE` are those of `benchmarks/`,
which measures every formulation.
"""

import tensorflow as tf

from keras_moe._tensorflow import in_forward_mode, inside_xla, is_recorded
from keras_moe.kernels.generic import (
    adam_step,
    first_value,
    gathered_sum,
    group_sizes_of,
    inverse_permutation,
    is_recomputing,
    is_spread,
    light_ops,
    linear_map,
    map_entries,
    may_be_repeated,
    mix_across,
    needs_a_full_call,
    num_token_shards,
    output_shapes,
    repeatable,
    row_of_each,
    settle,
    smaller_size,
    sort_few_groups,
    take_columns,
    take_rows,
    top_k_index,
    varying_alike,
    writes_leave_traces,
)
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.kernels.tensorflow import (
    loop,
    quantized,
    quantized_xla,
    split,
    xla_blocks,
    xla_few_rows,
)
from keras_moe.kernels.tensorflow.layer_hooks import (
    is_traced_here,
    keep_losses_apart,
    outside_of_traces,
    trace_here,
)
from keras_moe.kernels.tensorflow.programs import compiled, value_and_gradient
from keras_moe.kernels.tensorflow.replicas import (
    num_replicas,
    sum_over_replicas,
)
from keras_moe.kernels.tensorflow.row_ops import (
    known_int,
    require,
    shape_of_count,
    shapes_known,
)
from keras_moe.types import Tensor

FORMULATIONS: dict[str, Formulation] = {
    "tensorflow_loop": loop,
    "tensorflow_split": split,
    "tensorflow_xla": xla_blocks,
    "tensorflow_xla_few_rows": xla_few_rows,
}


def formulation_for(x: Tensor, num_groups: int) -> str:
    """XLA has no slices of unknown length: blocks inside `jit_compile=True`;
    without copies of the weights up to 8 rows a group, as on JAX (D1 0.84
    times `limitE`, blocks 6.1). Elsewhere unrolled (S f+b 1.23 times `limit`,
    a loop 1.37), but for many experts where a tape records: 24 blocks of 128
    took two minutes to trace, the loop 11 seconds. `predict` and `export`
    record nothing, and LiteRT has no such loop. The gradients written by hand
    have no forward mode."""
    if in_forward_mode(x):
        return "reference"
    if inside_xla():
        few = x.shape[0] is not None and x.shape[0] <= 8 * num_groups
        return "tensorflow_xla" + "_few_rows" * (few and _all_on_cpu())
    if is_recorded() and num_groups > 8:
        return "tensorflow_loop"
    return "tensorflow_split"


def _all_on_cpu():
    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def quantized_formulation() -> QuantizedFormulation:
    """Whatever the sizes."""
    return quantized_xla if inside_xla() else quantized
