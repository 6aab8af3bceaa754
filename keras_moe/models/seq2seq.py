"""An encoder-decoder model.

B batch, M length of the encoder's sequence, S of the decoder's, L max_length,
V vocabulary_size.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.models import generation, parts, prompts
from keras_moe.models.blocks import blocks_of, router_inputs_of
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MoESeq2Seq(generation.GeneratingModel):
    """Writes one sequence from another (Vaswani et al. 2017).

    `{"encoder_token_ids": (B, M), "decoder_token_ids": (B, S)}` to logits
    float32 `(B, S, V)`. Encoder and decoder have `num_layers` blocks each and
    share the embeddings. Id 0 is padding: it is not read, is routed nowhere,
    counts in no loss that `compile` adds, and is never generated. Train it on
    the target behind a start token, and on the target as labels.

    Args:
        vocabulary_size: V, of both sequences, padding included.
        max_length: L, the longest sequence that is generated; with learned
            positions the longest at all.
        tie_weights: whether the embeddings are the output matrix, too.
        **blocks: `num_layers, hidden_dim, num_heads, intermediate_dim,
            num_experts` and what else `Blocks` takes; and `name`, `dtype`
            and `trainable`.

    Raises:
        ValueError: for an argument out of its range, and a router that looks
            at later tokens.
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        tie_weights: bool = True,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **blocks,
    ):
        vocabulary_size, max_length = parts.check_sizes(
            vocabulary_size, max_length
        )
        tie_weights = checks.check_bool("tie_weights", tie_weights)
        built = blocks_of(self, dtype, blocks)
        layers = {
            "embeddings": parts.embeddings(
                vocabulary_size, max_length, built, tie_weights=tie_weights
            ),
            "encoder": built.encoder("encoder"),
            "encoder_norm": parts.final_norm(built.dtype, "encoder_norm"),
            "decoder": built.decoder("decoder", cross_attention=True),
            "decoder_norm": parts.final_norm(built.dtype, "decoder_norm"),
        }
        inputs = {
            name: keras.Input((None,), dtype="int32", name=name)
            for name in ("encoder_token_ids", "decoder_token_ids")
        }
        arguments = {
            "vocabulary_size": vocabulary_size,
            "max_length": max_length,
            "tie_weights": tie_weights,
            **built.arguments,
        }
        logits = _logits(layers, **inputs)
        super().__init__(inputs, logits, arguments, name, dtype, trainable)
        self.vocabulary_size, self.max_length = vocabulary_size, max_length
        self.parts = layers

    def encode(self, encoder_token_ids: Tensor):
        """Returns the encoding `(B, M, D)` and its mask `(B, M)`."""
        return _encoded(self.parts, encoder_token_ids)

    def empty_cache(self, encoder_token_ids: Tensor, max_length: int) -> tuple:
        """Encodes; returns a cache for at most `max_length` tokens.

        The encoder's keys and values, its mask, and empty places for the
        decoder's own keys and values.
        """
        encoding, mask = self.encode(encoder_token_ids)
        decoder = self.parts["decoder"]
        batch_size = encoder_token_ids.shape[0]
        read = tuple(block.encoder_cache_of(encoding) for block in decoder)
        own = tuple(b.empty_cache(batch_size, max_length) for b in decoder)
        return own, read, mask

    def step(
        self, decoder_token_ids: Tensor, cache: tuple, index: int | Tensor = 0
    ):
        """Reads target tokens that follow those in the cache.

        Args:
            decoder_token_ids: int `(B, S)`.
            cache: from `empty_cache` or an earlier step.
            index: int scalar, the position of the first of them.

        Returns:
            Logits `(B, S, V)`, and the cache with S tokens more.
        """
        own, read, mask = cache
        memories = [
            {"cache": cache, "encoder_cache": memory, "encoder_mask": mask}
            for cache, memory in zip(own, read, strict=True)
        ]
        logits, own = _decoded(self.parts, decoder_token_ids, memories, index)
        return logits, (own, read, mask)

    def generate(
        self,
        encoder_token_ids,
        max_length: int | None = None,
        start_token_id: int = 1,
        end_token_id: int | Sequence[int] | None = 2,
        sampler="greedy",
        seed: int | None = None,
        use_cache: bool = True,
    ) -> np.ndarray:
        """Writes a sequence for each one given.

        The program is compiled at the first call for a shape, a `max_length`,
        and a sampler. A change of the model compiles it again; new values of
        its weights do not.

        Args:
            encoder_token_ids: int `(B, M)`, padding (0) on the right.
            max_length: length of the result, start token included; None is
                the model's.
            start_token_id: id that the decoder begins with.
            end_token_id: id, or ids, that end a sequence; padding is behind
                them. None writes `max_length` tokens.
            sampler, seed, use_cache: see `MoELanguageModel.generate`.

        Returns:
            int32 `(B, max_length)`, the start token first.

        Raises:
            ValueError: if the sequences are empty, not integers `(B, M)`,
                outside of the vocabulary, or padded on the left; if a start
                or end id is no token of the vocabulary; if `max_length` is
                above the model's; and for another argument out of its range.
        """
        length = self.max_length
        if max_length is not None:
            length = checks.check_positive_int("max_length", max_length)
        vocabulary_size = self.vocabulary_size
        use_cache = checks.check_bool("use_cache", use_cache)
        stops = prompts.stop_ids_of(
            "end_token_id", end_token_id, vocabulary_size
        )
        first = prompts.token_id_of(
            "start_token_id", start_token_id, vocabulary_size
        )
        source, _ = prompts.ids_of(
            encoder_token_ids, vocabulary_size, "encoder_token_ids"
        )
        start = np.full((len(source), 1), first, "int32")
        prompt = prompts.prompt_of(start, length, self.max_length)
        lengths = np.ones(len(source), "int64")

        def cached(inputs, ids):
            return self._next_cached, self.empty_cache(inputs[0], length)

        def uncached(inputs, ids):
            return self._next_uncached, inputs[0]

        return self.run_generation(
            cached if use_cache else uncached,
            (source,),
            (prompt, lengths),
            sampler,
            stops,
            seed,
        )

    def _next_cached(self, ids, cache, index):
        last = ops.expand_dims(generation.column(ids, index - 1), -1)
        logits, cache = self.step(last, cache, index - 1)
        return generation.without_padding(logits[:, 0]), None, cache

    def _next_uncached(self, ids, cache, index):
        inputs = {"encoder_token_ids": cache, "decoder_token_ids": ids}
        logits = ops.take(self(inputs, training=False), index - 1, axis=1)
        return generation.without_padding(logits), None, cache


def _logits(layers, encoder_token_ids, decoder_token_ids):
    """The whole model: logits `(B, S, V)`."""
    encoding, encoder_mask = _encoded(layers, encoder_token_ids)
    memory = {
        "encoder_outputs": encoding,
        "encoder_mask": encoder_mask,
        "mask": ops.not_equal(decoder_token_ids, parts.PADDING),
    }
    memories = [memory for _ in layers["decoder"]]
    return _decoded(layers, decoder_token_ids, memories)[0]


def _encoded(layers, token_ids):
    mask = ops.not_equal(token_ids, parts.PADDING)
    x = parts.embedded(layers["embeddings"], token_ids)
    for block in layers["encoder"]:
        ids = router_inputs_of(block, token_ids)
        x = block(x, mask=mask, router_inputs=ids)
    return layers["encoder_norm"](x), mask


def _decoded(layers, token_ids, memories, index=0):
    """Logits, and the blocks' caches where their `memories` have such."""
    x = parts.embedded(layers["embeddings"], token_ids, index=index)
    caches = []
    for block, memory in zip(layers["decoder"], memories, strict=True):
        ids = router_inputs_of(block, token_ids)
        x = block(x, index=index, router_inputs=ids, **memory)
        if "cache" in memory:
            x, cache = x
            caches.append(cache)
    tokens = layers["embeddings"][0]
    return tokens(layers["decoder_norm"](x), reverse=True), tuple(caches)
