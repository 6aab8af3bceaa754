"""Routing that is not learned: by hash, by number, by position, or by rule.

T tokens, E experts, K top_k.

Each algorithm is a table of scores `(T, E)`, of which the K largest per token
are chosen. If an expert is off, its tokens go to the next experts in their own
order, and no other token moves.
"""

import operator

import numpy as np
from keras import ops

from keras_moe.checks import (
    check_count,
    check_positive_int,
    check_top_k,
    is_index,
    routing_checks,
)
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    available_logits,
    choose,
    token_choice,
)
from keras_moe.types import Assignment, Tensor


def hash_scores(ids: Tensor, num_experts: int, seed: int = 0) -> Tensor:
    """Return pseudo-random scores of each id and expert, uniform in 0 ... 1.

    This is highest-random-weight hashing, with one hash function per expert.
    An id always has the same experts, and its K experts are K different
    hashes.

    Reference: Thaler and Ravishankar 1998; Roller et al. 2021, "Hash Layers
    For Large Sparse Models", section 3.1.

    Args:
        ids: int `(T,)`.
        num_experts: int. E.
        seed: int. Another seed gives other hash functions. Defaults to 0.

    Returns:
        float32 `(T, E)`.

    Example:

    ```python
    scores = keras_moe.routing.hash_scores(
        np.array([7, 7, 3], "int32"), num_experts=4
    )  # the first two rows are equal
    ```
    """
    num_experts = check_positive_int("num_experts", num_experts)
    salt = _salt(num_experts, check_count("seed", seed))
    mixed = _mix(ops.expand_dims(ops.cast(ids, "int32"), -1))
    bits = _mix(ops.bitwise_xor(mixed, salt))
    bits = ops.bitwise_and(bits, 0xFFFFFF)  # as many as a float32 holds
    return ops.cast(bits, "float32") / float(1 << 24)


def cyclic_scores(ids: Tensor, num_experts: int) -> Tensor:
    """Return scores that rank expert `id mod E` first, then the next, etc.

    Args:
        ids: int `(T,)`.
        num_experts: int. E.

    Returns:
        float32 `(T, E)`.

    Example:

    ```python
    scores = keras_moe.routing.cyclic_scores(
        np.array([0, 5], "int32"), num_experts=4
    )  # experts 0 and 1 are first
    ```
    """
    num_experts = check_positive_int("num_experts", num_experts)
    experts = ops.arange(num_experts, dtype="int32")
    first = ops.expand_dims(ops.mod(ops.cast(ids, "int32"), num_experts), -1)
    distance = ops.mod(experts - first, num_experts)
    return ops.negative(ops.cast(distance, "float32"))


def rule_scores(
    expert: Tensor, num_experts: int, default_expert: int | None
) -> Tensor:
    """Return scores that rank one expert first, then the default, then others.

    The others follow in the order of `cyclic_scores`.

    Args:
        expert: int `(T,)`, in 0 ... E - 1. The first expert of each token.
        num_experts: int. E.
        default_expert: int in 0 ... E - 1. The expert that stands in if the
            first one is off. `None` for the next expert.

    Returns:
        float32 `(T, E)`.

    Example:

    ```python
    scores = keras_moe.routing.rule_scores(
        np.array([2, 0], "int32"), num_experts=4, default_expert=3
    )
    ```
    """
    check_default_expert(default_expert, num_experts)
    scores = cyclic_scores(expert, num_experts)
    experts = ops.arange(num_experts, dtype="int32")
    if default_expert is not None:
        is_default = ops.equal(experts, default_expert)
        scores = ops.where(is_default, ops.ones_like(scores) / 2, scores)
    chosen = ops.expand_dims(ops.cast(expert, "int32"), -1)
    return ops.where(ops.equal(experts, chosen), ops.ones_like(scores), scores)


def check_default_expert(value: object, num_experts: int) -> int | None:
    """Return `value`, or raise if it is neither None nor in 0 ... E - 1."""
    num_experts = check_positive_int("num_experts", num_experts)
    if value is None:
        return None
    if is_index(value, num_experts):
        return operator.index(value)
    raise ValueError(
        f"`default_expert` must be None or in 0 ... {num_experts - 1}. "
        f"Received: default_expert={value!r}. Pass the number of an expert."
    )


def fixed_assignment(
    scores: Tensor, top_k: int, conditions: Conditions = UNCONDITIONAL
) -> Assignment:
    """Send each token to its K best experts, each with the weight 1 / K.

    The logits are zero, and the probabilities are 1 / K for the chosen experts,
    so that no loss has a gradient.

    Args:
        scores: float32 `(T, E)`.
        top_k: int. K.
        conditions: `Conditions` of the batch.

    Example:

    ```python
    scores = keras_moe.routing.cyclic_scores(
        np.array([0, 5], "int32"), num_experts=4
    )
    assignment = keras_moe.routing.fixed_assignment(scores, top_k=1)
    ```
    """
    num_experts = routing_checks.num_columns(scores)
    top_k = check_top_k(top_k, num_experts)
    routing_checks.check_conditions(conditions)
    choice = choose(available_logits(scores, conditions), top_k, conditions)
    experts = ops.arange(num_experts, dtype="int32")
    hits = ops.equal(ops.expand_dims(choice.columns, -1), experts)
    probs = ops.sum(ops.cast(hits, "float32"), axis=1) / top_k
    weights = ops.cast(ops.ones_like(choice.columns), "float32") / top_k
    logits = available_logits(ops.zeros_like(scores), conditions)
    return token_choice(logits, probs, choice, weights, conditions)


def _salt(num_experts: int, seed: int) -> Tensor:
    """Return a number for each expert and seed, int32 `(E,)`.

    All experts have different hash functions for all seeds, however large.
    """
    numbers = [e + 1 + seed * num_experts for e in range(num_experts)]
    digits = max(1, -(-max(map(int.bit_length, numbers)) // 32))
    salt = ops.zeros((num_experts,), dtype="int32")
    for place in range(digits):
        digit = [n >> 32 * place & 0xFFFFFFFF for n in numbers]
        bits = np.array(digit, "uint32").view("int32")
        salt = _mix(ops.bitwise_xor(salt, ops.convert_to_tensor(bits)))
    return salt


def _mix(x: Tensor) -> Tensor:
    """Mix int32 bits, in the manner of MurmurHash3.

    Products wrap around on every backend. After each shift, which copies the
    sign, the upper bits are masked.
    """
    for multiplier in (0x7FEB352D, 0x046CA68B):
        x = ops.bitwise_xor(x, _shifted(x, 16))
        x = ops.multiply(x, ops.cast(multiplier, "int32"))
        x = ops.bitwise_xor(x, _shifted(x, 15))
    return ops.bitwise_xor(x, _shifted(x, 16))


def _shifted(x: Tensor, bits: int) -> Tensor:
    shifted = ops.right_shift(x, bits)
    return ops.bitwise_and(shifted, (1 << (32 - bits)) - 1)
