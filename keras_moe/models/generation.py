"""Generation, token by token, as one compiled program.

B batch, P length of the prompt, L max_length, V vocabulary_size.

A model provides `next_logits(ids, cache, index)`, which returns the logits
`(B, V)` of position `index - 1`, a value that is ignored, and the cache: the
protocol of `keras_hub.samplers`. The cache has length L from the start and each
step computes one token per sequence, so that a token costs the same at every
position.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from keras_moe import checks, kernels
from keras_moe.models.embedding_layers import PADDING
from keras_moe.models.moe_model import MoEModel
from keras_moe.models.prompts import ended
from keras_moe.models.samplers import FORBIDDEN, sampler_of
from keras_moe.types import Tensor

Cache: TypeAlias = Any
"""The keys and values of earlier positions, in a structure of the model's."""

NextLogits: TypeAlias = tuple[Tensor, None, Cache]
"""The results of `next_logits`: logits, an ignored value, and the cache."""

Start: TypeAlias = tuple[Callable[..., NextLogits], Cache]
"""`next_logits` and its first cache."""

NEVER = -1  # the id that no token has
LARGEST_DRAW = np.nextafter(np.float32(1), np.float32(0))


class GeneratingModel(MoEModel):
    """Base of the models that generate; it keeps their compiled programs.

    The key of a program is all that the program captured (`kernels.Programs`):
    lengths, the sampler, and the model's layers. A call with others, or after
    the model was changed, gets another program.
    """

    vocabulary_size: int
    max_length: int
    step: Callable[..., tuple[Tensor, Cache]]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._programs = kernels.Programs(self)

    def _length_of(self, max_length: int | None) -> int:
        """Return the length of the result; `None` means the model's."""
        if max_length is None:
            return self.max_length
        return checks.check_positive_int("max_length", max_length)

    def _next_cached(
        self, ids: Tensor, cache: Cache, index: Tensor
    ) -> NextLogits:
        """Return the logits at `index - 1`, computed with the cache."""
        last = ops.expand_dims(column(ids, index - 1), -1)
        logits, cache = self.step(last, cache, index - 1)
        return without_padding(logits[:, 0]), None, cache

    def run_generation(
        self,
        build: Callable[..., Start],
        inputs: tuple[Any, ...],
        prompt: tuple[np.ndarray, np.ndarray],
        sampler: str | Callable[..., Tensor],
        stops: tuple[int, ...],
        seed: int | None,
    ) -> np.ndarray:
        """Run a program, compiled at its first use, and return ids `(B, L)`.

        Args:
            build: Function of `inputs`, as tensors, and ids `(B, L)` that
                returns `next_logits` and the cache.
            inputs: Tuple of arrays for `build`.
            prompt: Ids int32 `(B, L)` and lengths `(B,)`.
            sampler: Name, function, or keras_hub sampler.
            stops: Ids that end a sequence.
            seed: int or None. Seed of random draws; `None` draws differently at
                every call.
        """
        ids, lengths = prompt
        sampler = sampler_of(sampler)
        written = tuple(getattr(sampler, "variables", ()))
        program = self._programs.of(program_of(build, sampler, self), written)
        given = np.arange(ids.shape[1]) < lengths[:, None]
        found = program(
            inputs,
            ids,
            given,
            np.int32(lengths.min()),
            np.array(stops or [NEVER], "int32"),
            draws_of(seed, ids.shape[::-1]),
        )
        found = ops.convert_to_numpy(found)
        check_found(found, self.vocabulary_size)
        return ended(found, given, stops)


def draws_of(seed: int | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers in 0 <= u < 1, the same for the same seed.

    A float64 draw just below 1 would be rounded to 1 in float32, and becomes
    the largest number below 1 instead.
    """
    if seed is not None:
        seed = checks.check_count("seed", seed)
    drawn = np.random.default_rng(seed).random(shape).astype("float32")
    draws: np.ndarray = np.minimum(drawn, LARGEST_DRAW)
    return draws


def program_of(
    build: Callable[..., Start],
    sampler: Callable[..., Tensor],
    model: GeneratingModel,
) -> Callable[..., Tensor]:
    """Return the function of tensors that generates; see `GeneratingModel`."""

    def program(
        inputs: tuple[Tensor, ...],
        ids: Tensor,
        given: Tensor,
        start: Tensor,
        stops: Tensor,
        uniform: Tensor,
    ) -> Tensor:
        ids, given, stops = map(ops.convert_to_tensor, (ids, given, stops))
        next_logits, cache = build(inputs, ids)
        if hasattr(sampler, "get_next_token"):  # keras_hub's protocol
            return sampler(
                next=next_logits,
                prompt=ids,
                cache=cache,
                index=start,
                mask=given,
                stop_token_ids=tuple(stops[i] for i in range(len(stops))),
                model=model,
            )
        choose = next_token(sampler, ops.convert_to_tensor(uniform))
        return loop(next_logits, choose, ids, cache, given, start, stops)

    return program


def next_token(
    sampler: Callable[..., Tensor], uniform: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the sampler as a function of logits and the position."""

    def choose(logits: Tensor, index: Tensor) -> Tensor:
        logits = ops.cast(logits, "float32")
        token = ops.convert_to_tensor(
            sampler(logits, ops.take(uniform, index, 0))
        )
        if tuple(token.shape) != tuple(logits.shape[:1]):
            raise ValueError(
                "`sampler` must return one token id per sequence. Received: "
                f"ids of shape {tuple(token.shape)} for logits of shape "
                f"{tuple(logits.shape)}. Return ids (batch,)."
            )
        return token

    return choose


def loop(
    next_logits: Callable[..., NextLogits],
    choose: Callable[[Tensor, Tensor], Tensor],
    ids: Tensor,
    cache: Cache,
    given: Tensor,
    start: Tensor,
    stops: Tensor,
) -> Tensor:
    """Write a token at each position from `start` on, and return the ids.

    Args:
        next_logits: Function that the top of the file describes.
        choose: Function of logits `(B, V)` and a position that returns ids
            `(B,)`.
        ids: int32 `(B, L)`. Prompts.
        cache: First cache of `next_logits`.
        given: bool `(B, L)`. True at the tokens of a prompt, which are kept.
        start: int32 scalar. First position to write.
        stops: int32 `(n,)`. Ids that end a sequence, or `NEVER`.

    Returns:
        int32 `(B, L)`.
    """
    batch_size, max_length = ids.shape

    def is_unfinished(
        ids: Tensor, cache: Cache, index: Tensor, done: Tensor
    ) -> Tensor:
        return ops.logical_and(
            index < max_length, ops.logical_not(ops.all(done))
        )

    def step(
        ids: Tensor, cache: Cache, index: Tensor, done: Tensor
    ) -> tuple[Tensor, Cache, Tensor, Tensor]:
        logits, _, cache = next_logits(ids, cache, index)
        prompt = column(given, index)
        token = ops.cast(choose(logits, index), ids.dtype)
        token = ops.where(prompt, column(ids, index), token)
        stopped = ops.any(ops.expand_dims(token, -1) == stops, axis=-1)
        ended = ops.logical_and(stopped, ops.logical_not(prompt))
        ids = ops.slice_update(ids, (0, index), ops.expand_dims(token, -1))
        return ids, cache, index + 1, ops.logical_or(done, ended)

    done = ops.zeros((batch_size,), dtype="bool")
    state = (ids, cache, ops.cast(start, "int32"), done)
    return ops.while_loop(is_unfinished, step, state)[0]


def column(table: Tensor, index: Tensor) -> Tensor:
    """Return `table[:, index]` of a table `(B, L)`."""
    return ops.take(table, index, axis=1)


def without_padding(logits: Tensor) -> Tensor:
    """Return logits `(B, V)` with which padding is never drawn."""
    tokens = ops.arange(logits.shape[-1], dtype="int32")
    return ops.where(tokens == PADDING, FORBIDDEN, logits)


def check_found(ids: np.ndarray, vocabulary_size: int) -> None:
    """Raise if a sampler has returned ids outside the vocabulary."""
    outside = ids[(ids < 0) | (ids >= vocabulary_size)]
    if outside.size:
        raise ValueError(
            "`sampler` must return ids in 0 ... vocabulary_size - 1. Received: "
            f"id {outside[0]}, vocabulary_size={vocabulary_size}. Return the "
            "index of one of the logits."
        )
