"""Default functions of a backend, in plain `keras.ops`.

Keras's other backends (NumPy, OpenVINO) use only these. `protocol/` describes
what each function does; the docstrings here describe how.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_moe.kernels import reference
from keras_moe.kernels.exchange import Bank, ExpertShard, Mix, Pairs
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.types import Activation, Tensor

light_ops = ops
FORMULATIONS: dict[str, Formulation] = {}


def formulation_for(x: Tensor, num_groups: int) -> str:
    """Return the reference, which runs every expert on every row."""
    return "reference"


def quantized_formulation() -> QuantizedFormulation:
    """Return the reference, which runs every expert on every row."""
    return reference


def light_activation(activation: Activation) -> Activation:
    """Return the activation."""
    return activation


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Use `ops.top_k`, with NaN and -0.0 replaced by 0.0."""
    ordered = ops.abs(scores) > 0
    scores = ops.where(ordered, scores, ops.zeros_like(scores))
    return ops.cast(ops.top_k(scores, top_k)[1], "int32")


def take_columns(table: Tensor, columns: Tensor) -> Tensor:
    """Use `ops.take_along_axis`."""
    return ops.take_along_axis(table, columns, axis=-1)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Use `ops.take`."""
    return ops.take(table, rows, axis=0)


def row_of_each(table: Tensor) -> Tensor:
    """Divide the entries' numbers by the number of columns."""
    num_rows, num_columns = ops.shape(table)
    return ops.arange(num_rows * num_columns, dtype="int32") // num_columns


def linear_map(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    *index: Tensor,
) -> Tensor:
    """Use a custom gradient, whose rule captures the indices."""

    def apply(x: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        def backward(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
            dy = args[0] if upstream is None else upstream
            return linear_map(transpose, forward, dy, *index)

        return forward(x, *index), backward

    return ops.custom_gradient(apply)(x)


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor | None:
    """Return None, since `keras.ops` has no single operation for this."""
    return None


def inverse_permutation(order: Tensor) -> Tensor:
    """Use a scatter."""
    size = ops.shape(order)[0]
    places = ops.arange(size, dtype="int32")
    return ops.scatter(ops.expand_dims(order, -1), places, (size,))


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """Compare the indices with each expert."""
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.reshape(expert_index, (-1, 1)), experts)
    return ops.sum(ops.cast(chosen, "int32"), axis=0)


def sort_few_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, ...] | None:
    """Return None, since reading the values would make the host wait."""
    return None


def map_entries(
    function: Callable[[tuple[Tensor, ...]], Tensor],
    tensors: tuple[Tensor, ...],
) -> Tensor:
    """Use `ops.vectorized_map`."""
    return ops.vectorized_map(function, tensors)


def shapes_known(x: Tensor) -> str:
    """Return `"at run time"`, since no operation is traced."""
    return "at run time"


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """Return the count, since no operation is traced."""
    return count


def smaller_size(one: Any, other: Any) -> Any:
    """Use `ops.minimum`."""
    return ops.minimum(one, other)


def output_shapes(function: Callable[..., Any], *args: Any) -> Any:
    """Raise an error, since only JAX needs this function."""
    raise NotImplementedError(
        "`output_shapes` runs only on JAX. Received: backend="
        f"{keras.backend.backend()!r}. Use `ops.shape`, since the shape of a "
        "tensor is known at run time."
    )


def known_int(value: Tensor) -> int | None:
    """Return None without reading the value."""
    return None


def require(valid: Tensor, message: str) -> Tensor:
    """Return `valid` without checking it."""
    return valid


def varying_alike(values: Any, *others: Any) -> Any:
    """Return the values, since there is no `shard_map`."""
    return values


def compiled(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable],
    written: Sequence[keras.Variable] = (),
) -> Callable[..., Any]:
    """Return the function itself, since there is no compiler."""
    return function


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Raise an error, since Keras's other backends have no gradients."""
    raise NotImplementedError(
        "`value_and_gradient` runs only on a backend with gradients. Received: "
        f"backend={keras.backend.backend()!r}. Set KERAS_BACKEND to jax, "
        "tensorflow, or torch."
    )


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """Do nothing, since replicas are not threads of one process."""


def needs_a_full_call(
    owner: keras.layers.Layer, layer: keras.layers.Layer
) -> bool:
    """Return True, since compiled programs omit Keras's extra work."""
    return True


def is_recomputing() -> bool:
    """Return False, since these backends repeat operations, not calls."""
    return False


def first_value(read: Callable[[], Tensor]) -> Tensor:
    """Return the present value, since calls are not repeated."""
    return read()


def may_be_repeated() -> bool:
    """Return False, since these backends repeat operations, not calls."""
    return False


def repeatable(pure: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context that does nothing, since calls are not repeated."""
    return contextlib.nullcontext()


def trace_here() -> object:
    """Return None, since values may leave every trace."""
    return None


def is_traced_here(value: Tensor) -> bool:
    """Return False, since values may leave every trace."""
    return False


def writes_leave_traces() -> bool:
    """Return True, since values may leave every trace."""
    return True


def outside_of_traces() -> contextlib.AbstractContextManager[Any]:
    """Return a context that does nothing: constants serve every trace."""
    return contextlib.nullcontext()


def settle(variable: keras.Variable) -> None:
    """Leave the weights where they are."""


def adam_step(
    variable: keras.Variable,
    gradient: Tensor,
    slots: Sequence[keras.Variable],
    step_size: Callable[[], Tensor],
    betas: tuple[float, float],
    epsilon: float,
) -> bool:
    """Return False, since the compiler fuses Keras's own step."""
    return False


def num_replicas() -> int:
    """Return 1, since one program computes the whole batch."""
    return 1


def sum_over_replicas(x: Tensor) -> Tensor:
    """Return `x`, since one program computes the whole batch."""
    return x


def is_spread(shard: ExpertShard | None, num_rows: int | Tensor) -> bool:
    """Return whether a bank is a part of the experts."""
    return shard is not None


def num_token_shards(bank: Bank) -> int:
    """Return 1, since a program's tokens lie on one device."""
    return 1


def mix_across(
    mix: Mix,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
) -> Tensor:
    """Raise an error, since these backends do not exchange rows."""
    raise NotImplementedError(
        "Experts can lie on several devices only on JAX and PyTorch. Received: "
        f"backend={keras.backend.backend()!r}. Set KERAS_BACKEND to jax or "
        "torch."
    )
