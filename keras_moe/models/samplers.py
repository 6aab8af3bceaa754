"""Draw the next token from logits.

B batch, V vocabulary_size.

A sampler is a function of float32 logits `(B, V)` and of numbers `(B,)` drawn
uniformly from 0 <= u < 1 that returns token ids `(B,)`. The numbers are drawn
from the seed on the host, so that a seed draws the same on every backend.
Objects of `keras_hub.samplers` are accepted, too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor

FORBIDDEN = -1e30  # the logit of a token that is never drawn
IMPOSSIBLE = FORBIDDEN / 10  # a lower logit has the probability 0
COLDEST = 1e-30  # a lower temperature is 0 in float32


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Choose the token with the highest logit; of equal ones the first.

    Example:

    ```python
    sampler = keras_moe.models.Greedy()
    token = sampler(np.array([[0.1, 2.0, 0.3]], "float32"), uniform=None)  # 1
    ```
    """

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return ids `(B,)`."""
        return ops.argmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Random:
    """Draw any token by its probability, `softmax(logits / temperature)`.

    Args:
        temperature: Finite number above 0. Numbers below 1 favor probable
            tokens. Defaults to 1.

    Raises:
        ValueError: If `temperature` is not a finite number above 0.

    Example:

    ```python
    sampler = keras_moe.models.Random(temperature=0.8)
    logits = np.array([[0.1, 2.0, 0.3]], "float32")
    token = sampler(logits, uniform=keras.random.uniform((1,)))
    ```
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature(self)

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        return _draw(probs, ids, uniform)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Draw one of the k most probable tokens (Fan et al. 2018, section 5.4).

    Args:
        k: Integer above 0. If k is above V, all tokens may be drawn. Defaults
            to 5.
        temperature: Finite number above 0; see `Random`. Defaults to 1.

    Raises:
        ValueError: If `k` is not an integer above 0, or if `temperature` is not
            a finite number above 0.

    Example:

    ```python
    sampler = keras_moe.models.TopK(k=2)
    logits = np.array([[0.1, 2.0, 0.3]], "float32")
    token = sampler(logits, uniform=keras.random.uniform((1,)))  # 1 or 2
    ```
    """

    k: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _set(self, k=checks.check_positive_int("k", self.k))
        _check_temperature(self)

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature, self.k)
        return _draw(probs, ids, uniform)


@dataclasses.dataclass(frozen=True)
class TopP:
    """Draw one of the fewest tokens whose probabilities sum to p or more.

    Reference: Holtzman et al. 2019, section 3.1 (nucleus sampling).

    Args:
        p: Number in 0 < p <= 1. Defaults to 0.9.
        temperature: Finite number above 0; see `Random`. Defaults to 1.

    Raises:
        ValueError: If `p` is not in 0 < p <= 1, or if `temperature` is not a
            finite number above 0.

    Example:

    ```python
    sampler = keras_moe.models.TopP(p=0.9)
    logits = np.array([[0.1, 2.0, 0.3]], "float32")
    token = sampler(logits, uniform=keras.random.uniform((1,)))
    ```
    """

    p: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _set(self, p=checks.check_above("p", self.p, 0, 1))
        _check_temperature(self)

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Return ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        before = ops.cumsum(probs, axis=-1) - probs
        return _draw(ops.where(before < self.p, probs, 0.0), ids, uniform)


SAMPLERS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "greedy": Greedy,
    "top_k": TopK,
    "top_p": TopP,
    "random": Random,
}


def sampler_of(sampler: str | Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the sampler of a name, or the sampler that is passed.

    Raises:
        ValueError: If it is neither one of the names nor a function, or if it
            is a class.
    """
    if isinstance(sampler, type):
        raise ValueError(
            "`sampler` must be a name or an object. Received: the class "
            f"sampler={sampler.__name__}. Pass {sampler.__name__}()."
        )
    if callable(sampler):
        return sampler
    if isinstance(sampler, str):
        name = checks.check_choice("sampler", sampler, tuple(SAMPLERS))
        return SAMPLERS[name]()
    raise ValueError(
        f"`sampler` must be one of {tuple(SAMPLERS)}, or a function of logits "
        f"and uniform draws. Received: sampler={sampler!r}. The default is "
        "'greedy'."
    )


def _check_temperature(sampler: Random | TopK | TopP) -> None:
    number = checks.check_above(
        "temperature", sampler.temperature, 0, float("inf")
    )
    _set(sampler, temperature=number)


def _set(sampler: object, **values: Any) -> None:
    """Replace NumPy's numbers by plain ones in a frozen sampler."""
    for name, value in values.items():
        object.__setattr__(sampler, name, value)


def _ranked(
    logits: Tensor, temperature: float, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return probabilities and ids of the most probable tokens, in order."""
    count = logits.shape[-1] if count is None else count
    logits = ops.cast(logits, "float32")
    # The highest becomes 0, so that nothing overflows at any temperature.
    scaled = logits - ops.max(logits, axis=-1, keepdims=True)
    scaled = scaled / max(temperature, COLDEST)
    scaled = ops.where(logits > IMPOSSIBLE, scaled, FORBIDDEN)
    probs = ops.softmax(scaled, axis=-1)
    probs, ids = ops.top_k(probs, min(count, logits.shape[-1]))
    return probs, ids


def _draw(probs: Tensor, ids: Tensor, uniform: Tensor) -> Tensor:
    """Return the ids at which the cumulative probabilities exceed `uniform`.

    A draw of 1, or one that is rounded to 1, exceeds all of them. Then the id
    is the last whose probability is above 0.

    Args:
        probs: float32 `(B, k)`, in descending order. They need not sum to 1.
        ids: int32 `(B, k)`.
        uniform: float32 `(B,)`.
    """
    running = ops.cumsum(probs, axis=-1)
    reached = ops.expand_dims(uniform, -1) * running[:, -1:]
    passed = _count(running <= reached)
    last = ops.maximum(_count(probs > 0) - 1, 0)
    return ops.take_along_axis(ids, ops.minimum(passed, last), axis=-1)[:, 0]


def _count(where: Tensor) -> Tensor:
    """Return the number of True values per row, int32 `(B, 1)`."""
    return ops.sum(ops.cast(where, "int32"), -1, keepdims=True)
