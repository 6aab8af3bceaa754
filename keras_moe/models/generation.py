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

from keras_moe import kernels
from keras_moe.layers import checks
from keras_moe.models.base import MoEModel
from keras_moe.models.parts import PADDING
from keras_moe.models.samplers import sampler_of
from keras_moe.types import Tensor

FORBIDDEN = -1e30  # the logit of what is never drawn
NEVER = -1  # the id that no token has


class GeneratingModel(MoEModel):
    """Base of the models that generate; compiled programs are kept."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._programs = {}

    def run_generation(
        self, build, key: tuple, inputs: tuple, prompt, sampler, stop, seed
    ):
        """Runs a program, compiled at its first use; returns ids `(B, L)`.

        Args:
            build: function of `inputs`, as tensors, and ids `(B, L)`, which
                returns `next_logits` and the cache.
            key: what tells this program of the model from others.
            inputs: tensors for `build`.
            prompt: from `prompt_of`.
            sampler: a name, a function, or a keras_hub sampler.
            stop: id of the token that ends a sequence, or None.
            seed: int or None.
        """
        ids, lengths = prompt
        sampler = sampler_of(sampler)
        written = tuple(getattr(sampler, "variables", ()))
        variables = (*self.variables, *written)
        key = (*key, type(sampler), sampler, *map(id, variables))
        if key not in self._programs:
            program = program_of(build, sampler, self)
            self._programs[key] = kernels.compiled(program, variables, written)
        given = np.arange(ids.shape[1]) < lengths[:, None]
        uniform = np.random.default_rng(seed).random(ids.shape[::-1])
        found = self._programs[key](
            inputs,
            ids,
            given,
            np.int32(lengths.min()),
            np.int32(NEVER if stop is None else stop),
            uniform.astype("float32"),
        )
        return ended(ops.convert_to_numpy(found), given, stop)


def program_of(build: Callable, sampler, model) -> Callable:
    """Returns the function of tensors that generates; see `GeneratingModel`."""

    def program(inputs, ids, given, start, stop, uniform):
        ids, given = (ops.convert_to_tensor(x) for x in (ids, given))
        next_logits, cache = build(inputs, ids)
        if hasattr(sampler, "get_next_token"):  # keras_hub's protocol
            return sampler(
                next=next_logits,
                prompt=ids,
                cache=cache,
                index=start,
                mask=given,
                stop_token_ids=(stop,),
                model=model,
            )
        choose = next_token(sampler, ops.convert_to_tensor(uniform))
        return loop(next_logits, choose, ids, cache, given, start, stop)

    return program


def next_token(sampler, uniform: Tensor) -> Callable:
    """Returns the sampler as a function of logits and the position."""

    def choose(logits, index):
        return sampler(ops.cast(logits, "float32"), ops.take(uniform, index, 0))

    return choose


def loop(
    next_logits: Callable,
    choose: Callable,
    ids: Tensor,
    cache,
    given: Tensor,
    start: Tensor,
    stop: Tensor,
) -> Tensor:
    """Writes a token at each position from `start` on; returns ids `(B, L)`.

    Args:
        next_logits: see the top of the file.
        choose: function of logits `(B, V)` and a position: ids `(B,)`.
        ids: int32 `(B, L)`, the prompts.
        cache: for `next_logits`.
        given: bool `(B, L)`, where a prompt stands: it is kept.
        start: int32 scalar, the first position to write.
        stop: int32 scalar, the id that ends a sequence, or NEVER.
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
        ended = ops.logical_and(token == stop, ops.logical_not(prompt))
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


def prompt_of(token_ids, max_length: int, longest: int | None = None):
    """Returns ids int32 `(B, L)`, filled with padding, and lengths `(B,)`.

    Raises:
        ValueError: for ids that are not `(B, P)` integers, an empty prompt,
            padding that is not on the right, and a `max_length` that is not
            in P ... the model's.
    """
    ids = np.asarray(ops.convert_to_numpy(token_ids))
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise ValueError(
            "`token_ids` must be integers (batch, length). Received: shape "
            f"{ids.shape}, dtype {ids.dtype}. Tokenise the text and add a "
            "batch axis."
        )
    lengths = (ids != PADDING).sum(axis=1)
    whole = (ids != PADDING) == (np.arange(ids.shape[1]) < lengths[:, None])
    if not (whole.all() and lengths.all()):
        raise ValueError(
            "`token_ids` must have at least one token a row and padding (0) on "
            f"the right alone. Received: {ids.tolist()}. Move the padding."
        )
    checks.check_positive_int("max_length", max_length)
    longest = max_length if longest is None else longest
    if not ids.shape[1] <= max_length <= longest:
        raise ValueError(
            "`max_length` must be at least the prompt's length and at most the "
            f"model's. Received: max_length={max_length}, a prompt of "
            f"{ids.shape[1]}, a model of {longest}. Change it."
        )
    width = [(0, 0), (0, max_length - ids.shape[1])]
    return np.pad(ids, width).astype("int32"), lengths


def prefill_length(longest: int, max_length: int) -> int:
    """How many tokens are read at once: a power of two from the prompt's
    length on, so that few programs are compiled. What is read too much is
    padding, and is written over."""
    return min(max_length, 1 << max(0, longest - 1).bit_length())


def ended(ids: np.ndarray, given: np.ndarray, stop: int | None) -> np.ndarray:
    """Puts padding behind the first `stop` that is not of the prompt."""
    if stop is None:
        return ids
    stops = (ids == stop) & ~given
    behind = np.cumsum(stops, axis=1) - stops > 0
    return np.where(behind, PADDING, ids)
