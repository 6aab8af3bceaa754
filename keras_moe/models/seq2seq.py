"""An encoder-decoder model.

B batch, M length of the encoder's sequence, S of the decoder's, L max_length,
V vocabulary_size.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
    """Generate one sequence from another (Vaswani et al. 2017).

    The model maps `{"encoder_token_ids": (B, M), "decoder_token_ids": (B, S)}`
    to logits float32 `(B, S, V)`. Encoder and decoder have `num_layers` blocks
    each and share the embeddings. Id 0 is padding: no other token attends to
    it, it is excluded from routing and from the losses that `compile` adds, and
    it is never generated. Train it with the target after a start token as
    `decoder_token_ids`, and with the target as labels.

    Args:
        vocabulary_size: Positive int. V of both sequences, padding included.
        max_length: Positive int. L, the length of the longest generated
            sequence, start token included. With learned positions, this is the
            longest input, too.
        tie_weights: bool. Whether the output matrix is the transposed
            embedding matrix. Defaults to `True`.
        num_layers: Positive int. Number of transformer blocks of the encoder,
            and of the decoder.
        hidden_dim: Positive int. D, the width of the model, a multiple of
            `num_heads`.
        num_heads: Positive int. Number of heads of each attention layer.
        intermediate_dim: Positive int. F, the inner width of each expert.
        num_experts: Positive int or None. E, the number of experts of each MoE
            block. `None` builds the dense twin, which `Blocks` describes.
        top_k: Positive int. K, the number of experts per token. Defaults to 2.
            Ignored if `router` is passed, which has its own.
        moe_every: int in 1 ... `num_layers`. Every n-th block is an MoE block
            and the others are dense. Defaults to 1: all are MoE blocks.
        num_key_value_heads: Divisor of `num_heads`, or None. Number of heads of
            keys and values (grouped-query attention). `None` (the default)
            means `num_heads`.
        dropout: float in 0 <= rate < 1. Dropout rate of the output of each part
            of a block. Defaults to 0.
        activation: str, function, or None. Activation of the experts. Defaults
            to `"gelu"`. `None` means a linear expert.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float above 0, or None. Limits the tokens per expert
            in training. `None` (the default) never drops tokens.
        shared_expert_dim: Positive int or None. Width of one more expert that
            every token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
        load_balancing_weight: float of 0 or above, learning rate schedule, or
            None. Weight of the load-balancing loss. `None` (the default) means
            the router's default.
        positions: str. `"rotary"` (the default) rotates queries and keys;
            `"learned"` adds a learned vector to each embedding.
        seed: int or None. Seed of dropout, jitter, and other random draws in
            training. `None` (the default) draws one. The initial weights follow
            `keras.utils.set_random_seed`.
        name: str or None. Name of the model. `None` (the default) derives it
            from the class name.
        dtype: dtype policy of every layer, or None. `None` (the default) means
            Keras's global policy.
        trainable: bool. Whether training updates the weights. Defaults to
            `True`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range, or
            if the choices of `router` depend on later tokens.

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
        dtype: Any = None,
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

    def encode(self, encoder_token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoding `(B, M, D)` and its mask `(B, M)`."""
        return encoder_decoder.encode(self.parts, encoder_token_ids)

    def empty_cache(
        self, encoder_token_ids: Tensor, max_length: int
    ) -> generation.Cache:
        """Encode a sequence, and return a cache for its decoder.

        The cache holds the encoder's keys and values, its mask, and room for
        the keys and values of up to `max_length` tokens of the decoder.
        """
        encoding, mask = self.encode(encoder_token_ids)
        decoder = self.parts["decoder"]
        batch_size = encoder_token_ids.shape[0]
        read = tuple(block.encoder_cache_of(encoding) for block in decoder)
        own = tuple(b.empty_cache(batch_size, max_length) for b in decoder)
        return own, read, mask

    def step(
        self,
        decoder_token_ids: Tensor,
        cache: generation.Cache,
        index: int | Tensor = 0,
    ) -> tuple[Tensor, generation.Cache]:
        """Compute the logits of target tokens that follow those in the cache.

        Args:
            decoder_token_ids: int `(B, S)`.
            cache: Cache from `empty_cache` or an earlier step.
            index: int scalar. Position of the first of the tokens. Defaults to
                0.

        Returns:
            Logits `(B, S, V)`, and the cache with S more tokens.
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
        encoder_token_ids: Any,
        max_length: int | None = None,
        start_token_id: int = 1,
        end_token_id: int | Sequence[int] | None = 2,
        sampler: str | Callable[..., Tensor] = "greedy",
        seed: int | None = None,
        use_cache: bool = True,
    ) -> np.ndarray:
        """Generate a sequence from each input sequence.

        The program is compiled at the first call for a shape, a `max_length`,
        and a sampler. A change of the model compiles it again; new values of
        its weights do not.

        Args:
            encoder_token_ids: int `(B, M)`, with padding (0) on the right.
            max_length: int in 1 ... L, or None. Length of the result, start
                token included. `None` (the default) means the model's
                `max_length`.
            start_token_id: int. Id that the decoder begins with. Defaults to 1.
            end_token_id: int, sequence of ints, or None. Ids that end a
                sequence, which is padded behind them. Defaults to 2. `None`
                generates `max_length` tokens.
            sampler: str, function, or `keras_hub.samplers.Sampler`. Defaults to
                `"greedy"`. See `MoELanguageModel.generate`.
            seed: int or None. Seed of random draws. `None` (the default) draws
                differently at every call.
            use_cache: bool. Whether keys and values are cached. Defaults to
                `True`.

        Returns:
            int32 `(B, max_length)`, the start token first.

        Raises:
            ValueError: If the sequences are empty, not integers `(B, M)`,
                outside the vocabulary, or padded on the left; if a start or
                end id is no token of the vocabulary; if `max_length` is above
                the model's; or if another argument has a wrong type or is out
                of its range.
        """
        length = self._length_of(max_length)
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

        def cached(inputs: tuple[Tensor], ids: Tensor) -> generation.Start:
            return self._next_cached, self.empty_cache(inputs[0], length)

        def uncached(inputs: tuple[Tensor], ids: Tensor) -> generation.Start:
            return self._next_uncached, inputs[0]

        return self.run_generation(
            cached if use_cache else uncached,
            (source,),
            (prompt, lengths),
            sampler,
            stops,
            seed,
        )

    def _next_uncached(
        self, ids: Tensor, cache: generation.Cache, index: Tensor
    ) -> generation.NextLogits:
        inputs = {"encoder_token_ids": cache, "decoder_token_ids": ids}
        logits = ops.take(self(inputs, training=False), index - 1, axis=1)
        return generation.without_padding(logits), None, cache
