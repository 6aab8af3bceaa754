"""Prompts of `generate`, and the ids that end a sequence.

B batch, P length of the prompt, L max_length, V vocabulary_size.
"""

import operator
from typing import Any

import numpy as np
from keras import ops

from keras_moe.models.embedding_layers import PADDING

SHOWN = 5  # ids in an error


def ids_of(
    token_ids: Any, vocabulary_size: int, name: str = "token_ids"
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids int32 `(B, P)` and the lengths `(B,)` without padding.

    Args:
        token_ids: int `(B, P)`. Array, tensor, or nested lists.
        vocabulary_size: int. V.
        name: str. Name of the argument, for errors.

    Raises:
        ValueError: If the ids are not integers `(B, P)`, if there is no
            sequence, if an id is not in 0 ... V - 1, if a row has no token,
            or if padding is not on the right.
    """
    ids = _integers(token_ids, name)
    outside = ids[(ids < 0) | (ids >= vocabulary_size)]
    if outside.size:
        raise ValueError(
            f"`{name}` must be in 0 ... vocabulary_size - 1. Received: ids "
            f"{outside[:SHOWN].tolist()}, vocabulary_size={vocabulary_size}. "
            "Use the tokenizer that the model was trained with."
        )
    lengths = (ids != PADDING).sum(axis=1)
    whole = (ids != PADDING) == (np.arange(ids.shape[1]) < lengths[:, None])
    if not (whole.all() and lengths.all()):
        raise ValueError(
            f"`{name}` must have at least one token per row, and padding (0) "
            f"only on the right. Received: {ids.tolist()}. Move the padding to "
            "the right, and remove rows without a token."
        )
    return ids.astype("int32"), lengths


def _integers(token_ids: Any, name: str) -> np.ndarray:
    try:
        ids = np.asarray(ops.convert_to_numpy(token_ids))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be integers (batch, length). Received: "
            f"{name}={token_ids!r}. Pad all rows to one length with 0."
        ) from error
    if ids.ndim == 2 and ids.dtype.kind in "iu" and len(ids):
        return ids
    raise ValueError(
        f"`{name}` must be integers (batch, length) with at least one row. "
        f"Received: shape {ids.shape}, dtype {ids.dtype}. Tokenize the text "
        "and add a batch axis."
    )


def prompt_of(ids: np.ndarray, max_length: int, longest: int) -> np.ndarray:
    """Return prompts `(B, P)`, padded on the right to int32 `(B, L)`.

    Args:
        ids: int32 `(B, P)`.
        max_length: int. L.
        longest: int. The `max_length` of the model.

    Raises:
        ValueError: If `max_length` is not in P ... `longest`.
    """
    if not ids.shape[1] <= max_length <= longest:
        raise ValueError(
            "`max_length` must be at least the prompt's length and at most the "
            f"model's. Received: max_length={max_length}, a prompt of "
            f"{ids.shape[1]} tokens, a model of {longest}. Pass a number in "
            "between, or None for the model's."
        )
    return np.pad(ids, [(0, 0), (0, max_length - ids.shape[1])])


def token_id_of(name: str, value: Any, vocabulary_size: int) -> int:
    """Return an id as an int.

    Raises:
        ValueError: If it is not an integer in 1 ... V - 1. Padding (0) is no
            token.
    """
    number = _index(value)
    if number is not None and 0 < number < vocabulary_size:
        return number
    raise ValueError(
        f"`{name}` must be an integer in 1 ... vocabulary_size - 1: padding "
        f"(0) is no token. Received: {name}={value!r}, vocabulary_size="
        f"{vocabulary_size}. Pass an id of the tokenizer."
    )


def stop_ids_of(name: str, value: Any, vocabulary_size: int) -> tuple[int, ...]:
    """Return the ids that end a sequence, sorted; none of them for `None`.

    Args:
        name: str. Name of the argument, for errors.
        value: int, sequence of ints, or None.
        vocabulary_size: int. V.

    Raises:
        ValueError: If an id is not an integer in 1 ... V - 1, or if the
            sequence is empty.
    """
    if value is None:
        return ()
    values = [value]
    if _index(value) is None and not isinstance(value, (str, bytes, dict)):
        try:
            values = list(value)
        except TypeError:
            pass  # not a sequence: `token_id_of` refuses the value itself
    if not values:
        raise ValueError(
            f"`{name}` must be an id, one or more ids, or None. Received: "
            f"{name}={value!r}. Pass None if no token ends a sequence."
        )
    ids = (token_id_of(name, one, vocabulary_size) for one in values)
    return tuple(sorted(set(ids)))


def _index(value: Any) -> int | None:
    """Return an integer of Python, NumPy, or a tensor as an int; else None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def prefill_length(longest: int, max_length: int) -> int:
    """Return how many tokens are read at once.

    It is the next power of two from the prompt's length on, at most
    `max_length`, so that few programs are compiled. Positions behind the prompt
    are overwritten in the cache when their tokens are generated.
    """
    return min(max_length, 1 << max(0, longest - 1).bit_length())


def ended(
    ids: np.ndarray, given: np.ndarray, stops: tuple[int, ...]
) -> np.ndarray:
    """Return ids with padding behind the first generated stop id.

    Args:
        ids: int `(B, L)`.
        given: bool `(B, L)`. True at the tokens of the prompt, in which stop
            ids end nothing.
        stops: Ids from `stop_ids_of`.
    """
    found = np.isin(ids, stops) & ~given
    behind = np.cumsum(found, axis=1) - found > 0
    return np.where(behind, PADDING, ids)
