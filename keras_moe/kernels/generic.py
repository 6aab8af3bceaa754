"""What a backend need not write itself, in plain `keras.ops`.

Keras's other backends (NumPy, OpenVINO) run with this alone. `protocol.py`
says what each function does.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_moe.kernels import reference
from keras_moe.kernels.exchange import Bank, Pairs
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.types import Tensor

light_ops = ops
FORMULATIONS: dict[str, Formulation] = {}


def formulation_for(x: Tensor, num_groups: int) -> str:
    """Every expert on every row."""
    return "reference"


def quantized_formulation() -> QuantizedFormulation:
    """Every expert on every row."""
    return reference


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """By `ops.top_k`, for which NaN and -0.0 are made 0.0."""
    ordered = ops.abs(scores) > 0
    scores = ops.where(ordered, scores, ops.zeros_like(scores))
    return ops.cast(ops.top_k(scores, top_k)[1], "int32")


def take_columns(table: Tensor, columns: Tensor) -> Tensor:
    """By `ops.take_along_axis`."""
    return ops.take_along_axis(table, columns, axis=-1)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """By `ops.take`."""
    return ops.take(table, rows, axis=0)


def row_of_each(table: Tensor) -> Tensor:
    """By a division."""
    num_rows, num_columns = ops.shape(table)
    return ops.arange(num_rows * num_columns, dtype="int32") // num_columns


def linear_map(
    forward: Callable, transpose: Callable, x: Tensor, *index: Tensor
) -> Tensor:
    """The rule captures the indices."""

    @ops.custom_gradient
    def apply(x):
        def backward(*args, upstream=None):
            dy = args[0] if upstream is None else upstream
            return linear_map(transpose, forward, dy, *index)

        return forward(x, *index), backward

    return apply(x)


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor | None:
    """There is no operation for all of it."""
    return None


def inverse_permutation(order: Tensor) -> Tensor:
    """By a scatter."""
    size = ops.shape(order)[0]
    places = ops.arange(size, dtype="int32")
    return ops.scatter(ops.expand_dims(order, -1), places, (size,))


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """By a comparison with each expert."""
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.reshape(expert_index, (-1, 1)), experts)
    return ops.sum(ops.cast(chosen, "int32"), axis=0)


def sort_few_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, ...] | None:
    """The host does not look at values."""
    return None


def map_entries(
    function: Callable[[tuple[Tensor, ...]], Tensor], tensors: tuple
) -> Tensor:
    """All at once."""
    return ops.vectorized_map(function, tensors)


def shapes_known(x: Tensor) -> str:
    """Nothing is traced."""
    return "at run time"


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """Values are at hand."""
    return count


def smaller_size(one: Any, other: Any) -> Any:
    """Of scalars."""
    return ops.minimum(one, other)


def output_shapes(function: Callable, *args: Any) -> Any:
    """Only JAX has a need for it."""
    raise NotImplementedError(
        "`output_shapes` must run on JAX: elsewhere a tensor's shape is known "
        f"at run time. Received: {keras.backend.backend()!r}. Use `ops.shape`."
    )


def known_int(value: Tensor) -> int | None:
    """No value is read."""
    return None


def require(valid: Tensor, message: str) -> Tensor:
    """No value is read."""
    return valid


def varying_alike(values: Any, *others: Any) -> Any:
    """There is no `shard_map`."""
    return values


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """There is no compiler."""
    return function


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """There are no gradients."""
    raise NotImplementedError(
        f"{keras.backend.backend()!r} has no gradients here. Use jax, "
        "tensorflow or torch."
    )


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """Replicas are no threads."""


def needs_a_full_call(
    owner: keras.layers.Layer, layer: keras.layers.Layer
) -> bool:
    """A compiled program has no trace of it."""
    return True


def is_recomputing() -> bool:
    """Operations are repeated, not calls."""
    return False


def first_value(read: Callable[[], Tensor]) -> Tensor:
    """The value now."""
    return read()


def may_be_repeated() -> bool:
    """Operations are repeated, not calls."""
    return False


def repeatable(pure: bool) -> contextlib.AbstractContextManager[None]:
    """Nothing to declare."""
    return contextlib.nullcontext()


def trace_here() -> object:
    """Nothing is traced that a value could not leave."""
    return None


def is_traced_here(value: Tensor) -> bool:
    """Nothing is traced that a value could not leave."""
    return False


def writes_leave_traces() -> bool:
    """They do."""
    return True


def outside_of_traces() -> contextlib.AbstractContextManager[Any]:
    """Anywhere."""
    return contextlib.nullcontext()


def settle(variable: keras.Variable) -> None:
    """It lies well."""


def adam_step(
    variable: keras.Variable,
    gradient: Tensor,
    slots: Sequence[keras.Variable],
    step_size: Callable[[], Tensor],
    betas: tuple[float, float],
    epsilon: float,
) -> bool:
    """Keras's own steps are fused by the compiler."""
    return False


def num_replicas() -> int:
    """One program has the whole batch."""
    return 1


def sum_over_replicas(x: Tensor) -> Tensor:
    """One program has the whole batch."""
    return x


def is_spread(shard: Any, num_rows: int | Tensor) -> bool:
    """A bank knows its part of the experts."""
    return shard is not None


def num_token_shards(bank: Bank) -> int:
    """They lie together."""
    return 1


def mix_across(
    mix: Callable,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
) -> Tensor:
    """There is no exchange of rows."""
    raise NotImplementedError(
        f"{keras.backend.backend()!r} has no exchange of rows. Use jax or "
        "torch."
    )
