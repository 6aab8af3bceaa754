"""JAX: an exchange of rows in rounds of fixed size.

D and D' widths, E experts, P routed pairs of one device, N devices that share
the experts, M rows from one of them to another.

With a capacity, one round of `one_round.py` holds all rows. Without one, the
counts are exchanged first, and rounds follow until all rows of the fullest pair
of devices are sent. The first round is outside of the loop, so that balanced
routing costs one all-to-all there and one back. The other rounds are a loop,
which the gradient computes again. If the fullest pair has `m` rows,
`ceil(m / M)` rounds send less than `N * (m + M)` rows per device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.forced import is_reference
from keras_moe.kernels.jax.one_round import Compute, Way, run_round
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.types import Tensor

_Later: TypeAlias = Callable[
    [int | Tensor, tuple[Tensor, ...], Tensor, Tensor], Tensor
]
"""`later(number, tensors, rows, counts)`: the outputs of one round."""


def in_rounds(
    compute: Compute,
    way: Way,
    agree: tuple[str, ...] | None,
    tensors: tuple[Tensor, ...],
    rows: Tensor,
    group_sizes: Tensor,
) -> Tensor:
    """Run rows through their experts, wherever these are.

    Args:
        compute: `compute(tensors, rows, group_sizes)`, which runs this
            device's experts.
        way: The connection between the devices that share the experts.
        agree: Mesh axes of the devices that run equally many rounds; None if
            one round holds all rows.
        tensors: Arguments of `compute` that have gradients.
        rows: `(P, D)`, sorted by expert.
        group_sizes: int32 `(E,)`. The number of rows per expert.

    Returns:
        `(P, D')`.
    """
    counts = jnp.reshape(group_sizes, (way.devices, -1))
    outputs = run_round(compute, way, 0, tensors, rows, counts)
    if agree is None or way.places >= rows.shape[0]:
        return outputs
    later = partial(run_round, compute, way)
    if is_reference():
        most = -(-rows.shape[0] // way.places)
        return _all_rounds(later, most, outputs, tensors, rows, counts)
    fullest = lax.pmax(jnp.max(jnp.sum(counts, axis=1)), agree)
    rounds = -(-fullest // way.places)
    return _later_rounds(later, outputs, rounds, tensors, rows, counts)


def _all_rounds(
    later: _Later,
    most: int,
    outputs: Tensor,
    tensors: tuple[Tensor, ...],
    rows: Tensor,
    counts: Tensor,
) -> Tensor:
    """Add rounds 1 ... most - 1, of which the last ones may be empty."""
    for number in range(1, most):
        outputs = outputs + later(number, tensors, rows, counts)
    return outputs


@partial(ReverseOnly, static=1)
def _later_rounds(
    later: _Later,
    outputs: Tensor,
    rounds: Tensor,
    tensors: tuple[Tensor, ...],
    rows: Tensor,
    counts: Tensor,
) -> Tensor:
    """Add rounds 1 ... rounds - 1 to the outputs of round 0."""

    def step(number: Tensor, outputs: Tensor) -> Tensor:
        return outputs + later(number, tensors, rows, counts)

    return lax.fori_loop(1, rounds, step, outputs)


def _later_rounds_forward(
    later: _Later, outputs: Tensor, rounds: Tensor, *inputs: Any
) -> tuple[Tensor, Any]:
    return _later_rounds(later, outputs, rounds, *inputs), (rounds, *inputs)


def _later_rounds_backward(
    later: _Later, kept: Any, dy: Tensor
) -> tuple[Any, ...]:
    dtensors, drows = _rounds_gradients(later, *kept, dy)
    return dy, None, dtensors, drows, None


_later_rounds.defvjp(_later_rounds_forward, _later_rounds_backward)


@partial(ReverseOnly, static=1)
def _rounds_gradients(
    later: _Later,
    rounds: Tensor,
    tensors: tuple[Tensor, ...],
    rows: Tensor,
    counts: Tensor,
    dy: Tensor,
) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Return the gradients of the tensors, None for integers, and the rows."""
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in tensors]

    def run(chosen: list[Tensor], rows: Tensor, number: Tensor) -> Tensor:
        found = iter(chosen)
        mixed = tuple(
            next(found) if f else x
            for f, x in zip(floats, tensors, strict=True)
        )
        return later(number, mixed, rows, counts)

    def step(number: Tensor, sums: Any) -> Any:
        _, vjp = jax.vjp(partial(run, number=number), chosen, rows)
        return jax.tree.map(jnp.add, sums, vjp(dy))

    chosen = [x for x, f in zip(tensors, floats, strict=True) if f]
    start = jax.tree.map(jnp.zeros_like, (chosen, rows))
    dchosen, drows = lax.fori_loop(1, rounds, step, start)
    found = iter(dchosen)
    return tuple(next(found) if f else None for f in floats), drows


def _refuse(later: _Later, *args: Any) -> NoReturn:
    raise NotImplementedError(
        "Without `capacity_factor`, experts on several devices have no second "
        "derivatives, since the number of rounds in which rows are exchanged "
        "is data. Received: a second derivative. Call the mixture inside "
        '`with keras_moe.kernels.use("reference"):`, which fixes the number, '
        "or set `capacity_factor`."
    )


_rounds_gradients.defvjp(
    lambda later, *args: (_rounds_gradients(later, *args), None), _refuse
)
