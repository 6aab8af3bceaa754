"""Sparse mixer: two experts, each drawn from those that are near the best.

T tokens, E experts, K = 2.
"""

from keras_moe.checks import check_top_k, check_weight, routing_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import take_columns, top_k_index
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Choice,
    Conditions,
    available_logits,
    replayed,
    softmax,
    token_choice,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor

WHOLE_SHARE = 0.75  # of draws for the midpoint of Heun's third-order method


def sparse_mixer_assignment(
    router_logits: Tensor,
    margin: float = 0.01,
    conditions: Conditions = UNCONDITIONAL,
    noise: Tensor | None = None,
    draw: Tensor | None = None,
) -> Assignment:
    """Send each token to two experts, chosen one after the other.

    An expert competes if its logit z is near the largest, m: `m - z <= 2 *
    margin * max(|z|, m)`. Without noise the best expert is chosen, and its
    weight is its share of a softmax over the competing experts. The second
    expert is chosen in the same way from the others, with a softmax of its own,
    so that the two weights do not sum to one: each is nearly one if its expert
    has no competitor.

    With noise (in training), an expert is drawn from the competing ones by
    their softmax. The weight of a drawn expert that is not the best is, in a
    quarter of the draws, the whole one, and otherwise a third of it, while its
    gradient is always that of the whole weight: Heun's third-order estimate of
    the gradient of the draw.

    Reference: Liu et al. 2024, "GRIN: GRadient-INformed MoE" (SparseMixer-v2),
    as in Phi-3.5-MoE.

    Args:
        router_logits: float32 `(T, E)`, E 2 or more.
        margin: float, 0 or above. Defaults to 0.01, Phi-3.5-MoE's
            `router_jitter_noise`.
        conditions: `Conditions` of the batch: padding, experts that are off,
            a replay.
        noise: float32 `(2, T, E)`. Noise of the two choices, drawn from the
            standard Gumbel distribution. `None` (the default) for none.
        draw: float32 `(T, 2)`, uniform in 0 ... 1. Needed with `noise`: which
            weights are whole, those with a draw above 0.75. `None` (the
            default) leaves all weights whole.

    Returns:
        An `Assignment`. The pairs of token t are at `2 t` and `2 t + 1`.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.sparse_mixer_assignment(logits)
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    check_top_k(2, routing_checks.num_columns(router_logits))
    margin = check_weight("margin", margin)
    routing_checks.check_conditions(conditions)
    masked = available_logits(router_logits, conditions)
    first_near = _near_the_best(masked, masked, margin)
    first = _pick(first_near, noise, 0)
    second_near = _near_the_best(masked, _without(masked, first), margin)
    second = _pick(second_near, noise, 1)
    choice = Choice(ops.concatenate([first, second], axis=-1))
    if conditions.replay is not None:
        num_experts = routing_checks.num_columns(masked)
        choice = replayed(
            choice.columns, conditions.replay, conditions, num_experts
        )
        others = _without(masked, choice.columns[:, :1])
        second_near = _near_the_best(masked, others, margin)
    weights = [
        _weight(near, choice.columns[:, k : k + 1], draw, k)
        for k, near in enumerate((first_near, second_near))
    ]
    return token_choice(
        masked,
        softmax(masked),
        choice,
        ops.concatenate(weights, axis=-1),
        conditions,
    )


def _near_the_best(logits: Tensor, others: Tensor, margin: float) -> Tensor:
    """Set logits that do not compete to `UNAVAILABLE`.

    Args:
        logits: float32 `(T, E)`.
        others: float32 `(T, E)`. The logits, `UNAVAILABLE` for an expert that
            is chosen already.
        margin: float.
    """
    best = ops.stop_gradient(take_columns(others, top_k_index(others, 1)))
    logits = ops.stop_gradient(logits)
    size = ops.maximum(ops.abs(logits), best)
    far = best - logits > 2 * margin * size  # False for NaN, which stays
    return ops.where(ops.logical_not(far), others, UNAVAILABLE)


def _without(logits: Tensor, columns: Tensor) -> Tensor:
    """Set one column of each row, `(T, 1)`, to `UNAVAILABLE`."""
    every = ops.arange(routing_checks.num_columns(logits), dtype="int32")
    is_other = ops.not_equal(every, ops.cast(columns, "int32"))
    return ops.where(is_other, logits, UNAVAILABLE)


def _pick(near: Tensor, noise: Tensor | None, k: int) -> Tensor:
    """Return the columns `(T, 1)` of the best experts, or draw them."""
    if noise is None:
        return top_k_index(near, 1)
    noisy = near + ops.convert_to_tensor(noise)[k]
    return top_k_index(ops.where(near > UNAVAILABLE / 2, noisy, near), 1)


def _weight(
    near: Tensor, columns: Tensor, draw: Tensor | None, k: int
) -> Tensor:
    """Return the weights `(T, 1)` of the k-th choice."""
    weight = take_columns(softmax(near), columns)
    if draw is None:
        return weight
    is_best = ops.equal(ops.cast(columns, "int32"), top_k_index(near, 1))
    drawn = ops.convert_to_tensor(draw)[:, k : k + 1]
    is_whole = ops.logical_or(is_best, drawn > WHOLE_SHARE)
    missing = ops.where(is_whole, ops.zeros_like(weight), 2 / 3 * weight)
    return weight - ops.stop_gradient(missing)
