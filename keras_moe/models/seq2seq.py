"""An encoder-decoder model.

B batch, M length of the encoder's sequence, S of the decoder's, L max_length,
V vocabulary_size.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_moe import checks
from keras_moe.layers import BaseRouter
from keras_moe.models import (
    embedding_layers,
    encoder_decoder,
    generation,
    prompts,
)
from keras_moe.models.transformer_blocks import Blocks
from keras_moe.types import Activation, Tensor


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
        num_layers: int. Number of transformer blocks of the encoder, and of the
            decoder.
        hidden_dim: int. D, the width of the model, a multiple of `num_heads`.
        num_heads: int. Number of heads of each attention layer.
        intermediate_dim: int. F, the inner width of each expert.
        num_experts: int or None. E, the number of experts of each MoE block.
            `None` builds the dense twin, which `Blocks` describes.
        top_k: int. K, the number of experts per token. Defaults to 2. A
            `router` brings its own.
        moe_every: int. Every n-th block is an MoE block and the others are
            dense. Defaults to 1: all are MoE blocks.
        num_key_value_heads: int or None. Number of heads of keys and values
            (grouped-query attention). `None` (the default) means `num_heads`.
        dropout: float. Dropout rate of the output of each part of a block.
            Defaults to 0.
        activation: str or function. Activation of the experts.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float or None. Limits the tokens per expert in
            training. `None` (the default) never drops tokens.
        shared_expert_dim: int or None. Width of one more expert that every
            token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
        load_balancing_weight: float, learning rate schedule, or None. Weight
            of the load-balancing loss. `None` means the router's default.
        positions: str. `"rotary"` (the default) rotates queries and keys;
            `"learned"` adds a learned vector to each embedding.
        seed: int or None. Seed of dropout, jitter, and the like. The initial
            weights follow `keras.utils.set_random_seed`.
        name: str or None. Name of the model.
        dtype: dtype policy of every layer. `None` means Keras's global policy.
        trainable: bool. Whether training updates the weights.

    Raises:
        ValueError: for an argument out of its range, and a router that looks
            at later tokens.

    Example:

    ```python
    model = keras_moe.models.MoESeq2Seq(
        vocabulary_size=100,
        max_length=12,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_experts=4,
    )
    tokens = model.generate(
        np.array([[5, 8, 3]]), start_token_id=1, end_token_id=2, max_length=6
    )
    ```
    """

    def __init__(
        self,
        vocabulary_size: int,
        max_length: int,
        tie_weights: bool = True,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        *,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        num_experts: int | None,
        top_k: int = 2,
        moe_every: int = 1,
        num_key_value_heads: int | None = None,
        dropout: float = 0.0,
        activation: str | Activation | None = "gelu",
        gated: bool = False,
        capacity_factor: float | None = None,
        shared_expert_dim: int | None = None,
        router: BaseRouter | None = None,
        load_balancing_weight: float | LearningRateSchedule | None = None,
        positions: str = "rotary",
        seed: int | None = None,
    ):
        vocabulary_size, max_length = embedding_layers.check_sizes(
            vocabulary_size, max_length
        )
        tie_weights = checks.check_bool("tie_weights", tie_weights)
        built = Blocks.from_arguments(locals())
        layers = {
            "embeddings": embedding_layers.embeddings(
                vocabulary_size, max_length, built, tie_weights=tie_weights
            ),
            "encoder": built.encoder("encoder"),
            "encoder_norm": embedding_layers.final_norm(
                built.dtype, "encoder_norm"
            ),
            "decoder": built.decoder("decoder", cross_attention=True),
            "decoder_norm": embedding_layers.final_norm(
                built.dtype, "decoder_norm"
            ),
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
        logits = encoder_decoder.logits_of(layers, **inputs)
        super().__init__(inputs, logits, arguments, name, dtype, trainable)
        self.vocabulary_size, self.max_length = vocabulary_size, max_length
        self.parts = layers

    def encode(self, encoder_token_ids: Tensor):
        """Returns the encoding `(B, M, D)` and its mask `(B, M)`."""
        return encoder_decoder.encode(self.parts, encoder_token_ids)

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
        logits, own = encoder_decoder.decode(
            self.parts, decoder_token_ids, memories, index
        )
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
