"""JAX: the functions of `kernels`, and the choice of a formulation.

P rows, E groups. `benchmarks/published/report.md` compares the formulations.
"""

import jax

from keras_moe._jax import is_traced_here, trace_here
from keras_moe.kernels.generic import (
    adam_step,
    first_value,
    gathered_sum,
    group_sizes_of,
    inverse_permutation,
    is_recomputing,
    keep_losses_apart,
    light_activation,
    light_ops,
    map_entries,
    may_be_repeated,
    needs_a_full_call,
    num_replicas,
    repeatable,
    row_of_each,
    settle,
    sort_few_groups,
    sum_over_replicas,
    take_columns,
    take_rows,
)
from keras_moe.kernels.jax import blocks, few_rows, quantized, ragged_dot
from keras_moe.kernels.jax.exchange import (
    is_spread,
    mix_across,
    num_token_shards,
)
from keras_moe.kernels.jax.layer_hooks import (
    outside_of_traces,
    writes_leave_traces,
)
from keras_moe.kernels.jax.programs import compiled, value_and_gradient
from keras_moe.kernels.jax.row_ops import (
    known_int,
    linear_map,
    output_shapes,
    require,
    shape_of_count,
    shapes_known,
    smaller_size,
    top_k_index,
)
from keras_moe.kernels.jax.varying import varying_alike
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.types import Tensor

FORMULATIONS: dict[str, Formulation] = {
    "jax_blocks": blocks,
    "jax_few_rows": few_rows,
    "jax_ragged_dot": ragged_dot,
}


def formulation_for(x: Tensor, num_groups: int) -> str:
    """Return the name of the formulation for rows `x` `(P, D)`.

    Accelerators have a grouped matmul, which on CPU multiplies every row by
    every matrix. On CPU, `jax_few_rows`, which does not copy the weights, is
    faster with at most 8 rows per group. `jax_blocks` also handles a symbolic
    number of rows (`jax.export`, or a user's model on `keras.Input`).
    """
    if jax.default_backend() != "cpu":
        return "jax_ragged_dot"
    known = isinstance(x.shape[0], int)
    if known and x.shape[0] <= 8 * num_groups:
        return "jax_few_rows"
    return "jax_blocks"


def quantized_formulation() -> QuantizedFormulation:
    """Return the only module for quantized kernels."""
    return quantized
