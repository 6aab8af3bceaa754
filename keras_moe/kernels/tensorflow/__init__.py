"""TensorFlow: the functions of `kernels`, and the choice of a formulation.

P rows, E groups. `benchmarks/published/report.md` compares the formulations.
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
from keras_moe.kernels.tensorflow.gated_units import light_activation
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
    """Return the name of the formulation for rows `x` `(P, D)`.

    In forward mode it is the reference, since hand-written gradients have
    none. XLA has no slices of unknown length, so that inside
    `jit_compile=True` the formulations go through blocks. On CPU, as on JAX,
    the one that does not copy the weights is faster with at most 8 rows per
    group. Elsewhere the unrolled `tensorflow_split` is the fastest, but takes
    long to trace for many experts if a tape records, so that `tensorflow_loop`
    runs for more than 8. `predict` and `export` record nothing, and LiteRT
    cannot run that loop.
    """
    if in_forward_mode(x):
        return "reference"
    if inside_xla():
        few = x.shape[0] is not None and x.shape[0] <= 8 * num_groups
        return "tensorflow_xla" + "_few_rows" * (few and _all_on_cpu())
    if is_recorded() and num_groups > 8:
        return "tensorflow_loop"
    return "tensorflow_split"


def _all_on_cpu() -> bool:
    devices = tf.config.list_logical_devices()
    return all(device.device_type == "CPU" for device in devices)


def quantized_formulation() -> QuantizedFormulation:
    """Return `quantized_xla` inside of XLA, otherwise `quantized`."""
    return quantized_xla if inside_xla() else quantized
