"""How the next token is drawn from logits.

B batch, V vocabulary_size.

A sampler is a function of float32 logits `(B, V)` and of numbers drawn evenly
from 0 ... 1, `(B,)`, which returns token ids `(B,)`. The numbers come from the
seed on the host: one seed draws the same on every backend. Objects of
`keras_hub.samplers` are taken, too.
"""

from typing import NamedTuple

from keras import ops

from keras_moe.layers import checks
from keras_moe.types import Tensor


class Greedy(NamedTuple):
    """The token of the highest logit; of equal ones the first."""

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Returns ids `(B,)`."""
        return ops.argmax(logits, axis=-1)


class Random(NamedTuple):
    """Any token by its probability, `softmax(logits / temperature)`."""

    temperature: float = 1.0

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        return _draw(probs, ids, uniform)


class TopK(NamedTuple):
    """One of the k most probable tokens (Fan et al. 2018, section 5.4)."""

    k: int = 5
    temperature: float = 1.0

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature, self.k)
        return _draw(probs, ids, uniform)


class TopP(NamedTuple):
    """One of the fewest tokens whose probabilities reach p (nucleus sampling,
    Holtzman et al. 2019, section 3.1)."""

    p: float = 0.9
    temperature: float = 1.0

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Returns ids `(B,)`."""
        probs, ids = _ranked(logits, self.temperature)
        before = ops.cumsum(probs, axis=-1) - probs
        return _draw(ops.where(before < self.p, probs, 0.0), ids, uniform)


SAMPLERS = {"greedy": Greedy, "top_k": TopK, "top_p": TopP, "random": Random}


def sampler_of(sampler):
    """Returns the sampler that a name stands for, or the one given.

    Raises:
        ValueError: for another name, or what is no function.
    """
    if callable(sampler):
        return sampler
    return SAMPLERS[checks.check_choice("sampler", sampler, tuple(SAMPLERS))]()


def _ranked(logits, temperature, count=None):
    """Probabilities and ids of the most probable tokens, the best first."""
    count = logits.shape[-1] if count is None else count
    probs = ops.softmax(logits / temperature, axis=-1)
    return ops.top_k(probs, min(count, logits.shape[-1]))


def _draw(probs, ids, uniform):
    """The id at which the running sum of `(B, k)` passes `uniform` of it."""
    running = ops.cumsum(probs, axis=-1)
    reached = ops.expand_dims(uniform, -1) * running[:, -1:]
    passed = ops.sum(ops.cast(running <= reached, "int32"), -1, keepdims=True)
    passed = ops.minimum(passed, probs.shape[-1] - 1)
    return ops.take_along_axis(ids, passed, axis=-1)[:, 0]
