"""Generation, token by token, as one compiled program.

B batch, P length of the prompt, L max_length, V vocabulary_size.

A model writes `next_logits(ids, cache, index)`, which returns the logits of
position `index - 1`, `(B, V)`, something that is not looked at, and the cache:
the protocol of `keras_hub.samplers`. The cache has the length L from the start
and each step works on one token a sequence, so that a token costs the same at
every position.
"""

from collections.abc import Callable

import numpy as np
from keras import ops

from keras_moe import checks, kernels
from keras_moe.models.embedding_layers import PADDING
from keras_moe.models.moe_model import MoEModel
from keras_moe.models.prompts import ended
from keras_moe.models.samplers import FORBIDDEN, sampler_of
from keras_moe.types import Tensor

NEVER = -1  # the id that no token has
LARGEST_DRAW = np.nextafter(np.float32(1), np.float32(0))


class GeneratingModel(MoEModel):
    """Base of the models that generate; compiled programs are kept.

    A program is kept under everything that it captured (`kernels.Programs`):
    lengths, the sampler, and the model's layers, so that another call, or a
    model that was changed, gets another one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._programs = kernels.Programs(self)

    def run_generation(
        self,
        build: Callable,
        inputs: tuple,
        prompt: tuple[np.ndarray, np.ndarray],
        sampler,
        stops: tuple[int, ...],
        seed: int | None,
    ) -> np.ndarray:
        """Runs a program, compiled at its first use; returns ids `(B, L)`.

        Args:
            build: function of `inputs`, as tensors, and ids `(B, L)`, which
                returns `next_logits` and the cache.
            inputs: tensors for `build`.
            prompt: ids int32 `(B, L)` and lengths `(B,)`.
            sampler: a name, a function, or a keras_hub sampler.
            stops: ids that end a sequence.
            seed: int or None.
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


def draws_of(seed: int | None, shape: tuple) -> np.ndarray:
    """Returns numbers in 0 <= u < 1, float32, the same for the same seed.

    Of 30 million float64 draws one is rounded to 1.0 in float32.
    """
    if seed is not None:
        seed = checks.check_count("seed", seed)
    drawn = np.random.default_rng(seed).random(shape).astype("float32")
    return np.minimum(drawn, LARGEST_DRAW)


def program_of(build: Callable, sampler, model) -> Callable:
    """Returns the function of tensors that generates; see `GeneratingModel`."""

    def program(inputs, ids, given, start, stops, uniform):
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


def next_token(sampler, uniform: Tensor) -> Callable:
    """Returns the sampler as a function of logits and the position."""

    def choose(logits, index):
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
    next_logits: Callable,
    choose: Callable,
    ids: Tensor,
    cache,
    given: Tensor,
    start: Tensor,
    stops: Tensor,
) -> Tensor:
    """Writes a token at each position from `start` on; returns ids `(B, L)`.

    Args:
        next_logits: see the top of the file.
        choose: function of logits `(B, V)` and a position: ids `(B,)`.
        ids: int32 `(B, L)`, the prompts.
        cache: for `next_logits`.
        given: bool `(B, L)`, where a prompt stands: it is kept.
        start: int32 scalar, the first position to write.
        stops: int32 `(n,)`, the ids that end a sequence, or NEVER.
    """
    batch_size, max_length = ids.shape

    def goes_on(ids, cache, index, done):
        return ops.logical_and(
            index < max_length, ops.logical_not(ops.all(done))
        )

    def step(ids, cache, index, done):
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
    return ops.while_loop(goes_on, step, state)[0]


def column(table: Tensor, index: Tensor) -> Tensor:
    """Returns `table[:, index]` of `(B, L)`."""
    return ops.take(table, index, axis=1)


def without_padding(logits: Tensor) -> Tensor:
    """Returns logits `(B, V)` under which padding is never drawn."""
    tokens = ops.arange(logits.shape[-1], dtype="int32")
    return ops.where(tokens == PADDING, FORBIDDEN, logits)


def check_found(ids: np.ndarray, vocabulary_size: int) -> None:
    """Raises if a sampler has returned what is no id of the vocabulary."""
    outside = ids[(ids < 0) | (ids >= vocabulary_size)]
    if outside.size:
        raise ValueError(
            "`sampler` must return ids in 0 ... vocabulary_size - 1. Received: "
            f"id {outside[0]}, vocabulary_size={vocabulary_size}. Return the "
            "index of one of the logits."
        )
