"""How the next token is drawn from logits.

B batch, V vocabulary_size.

A sampler is a function of float32 logits `(B, V)` and of numbers drawn evenly
from 0 <= u < 1, `(B,)`, which returns token ids `(B,)`. The numbers come from
the seed on the host: one seed draws the same on every backend. Objects of
`keras_hub.samplers` are taken, too.
"""

import dataclasses

from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor

FORBIDDEN = -1e30  # the logit of a token that is never drawn
IMPOSSIBLE = FORBIDDEN / 10  # at a logit below, the probability is 0
COLDEST = 1e-30  # below, float32 divides by 0


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The token of the highest logit; of equal ones the first.

    Example:

    ```python
    sampler = keras_moe.models.Greedy()
    token = sampler(np.array([[0.1, 2.0, 0.3]], "float32"), uniform=None)  # 1
    ```
    """

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Returns ids `(B,)`."""
        return ops.argmax(logits, axis=-1)


@dataclasses.dataclass(frozen=True)
class Random:
    """Any token by its probability, `softmax(logits / temperature)`.

    Args:
        temperature: Finite number above 0. Below 1 favors probable tokens.

    Raises:
        ValueError: if `temperature` is out of its range.

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
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        return _draw(probs, ids, uniform)


@dataclasses.dataclass(frozen=True)
class TopK:
    """One of the k most probable tokens (Fan et al. 2018, section 5.4).

    Args:
        k: Integer above 0. Above the vocabulary's size it is that size.
        temperature: see `Random`.

    Raises:
        ValueError: if an argument is out of its range.

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
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature, self.k)
        return _draw(probs, ids, uniform)


@dataclasses.dataclass(frozen=True)
class TopP:
    """One of the fewest tokens whose probabilities reach p (nucleus sampling,
    Holtzman et al. 2019, section 3.1).

    Args:
        p: Number in 0 < p <= 1.
        temperature: see `Random`.

    Raises:
        ValueError: if an argument is out of its range.

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
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        before = ops.cumsum(probs, axis=-1) - probs
        return _draw(ops.where(before < self.p, probs, 0.0), ids, uniform)


SAMPLERS = {"greedy": Greedy, "top_k": TopK, "top_p": TopP, "random": Random}


def sampler_of(sampler):
    """Returns the sampler that a name stands for, or the one given.

    Raises:
        ValueError: if it is neither one of the names nor a function.
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


def _check_temperature(sampler):
    number = checks.check_above(
        "temperature", sampler.temperature, 0, float("inf")
    )
    _set(sampler, temperature=number)


def _set(sampler, **values):
    """Puts plain numbers in the place of NumPy's, into frozen samplers."""
    for name, value in values.items():
        object.__setattr__(sampler, name, value)


def _ranked(logits, temperature, count=None):
    """Probabilities and ids of the most probable tokens, the best first."""
    count = logits.shape[-1] if count is None else count
    logits = ops.cast(logits, "float32")
    # The best is 0, so that nothing overflows at any temperature.
    scaled = logits - ops.max(logits, axis=-1, keepdims=True)
    scaled = scaled / max(temperature, COLDEST)
    scaled = ops.where(logits > IMPOSSIBLE, scaled, FORBIDDEN)
    probs = ops.softmax(scaled, axis=-1)
    return ops.top_k(probs, min(count, logits.shape[-1]))


def _draw(probs, ids, uniform):
    """The id at which the running sum of `(B, k)` passes `uniform` of it.

    A draw of 1, or one that rounding makes 1, passes all of them. It is the
    last id whose probability is above 0: those with 0 are behind.
    """
    running = ops.cumsum(probs, axis=-1)
    reached = ops.expand_dims(uniform, -1) * running[:, -1:]
    passed = _count(running <= reached)
    last = ops.maximum(_count(probs > 0) - 1, 0)
    return ops.take_along_axis(ids, ops.minimum(passed, last), axis=-1)[:, 0]


def _count(where):
    """How many are True in each row: int32 `(B, 1)`."""
    return ops.sum(ops.cast(where, "int32"), -1, keepdims=True)
