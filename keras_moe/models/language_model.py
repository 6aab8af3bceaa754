"""A causal language model.

B batch, S sequence length, P prompt length, L max_length, V vocabulary_size.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_moe import checks
from keras_moe.layers import BaseRouter
from keras_moe.models import embedding_layers, generation, prompts
from keras_moe.models.transformer_blocks import Blocks, router_inputs_of
from keras_moe.types import Activation, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MoELanguageModel(generation.GeneratingModel):
    """Predicts each next token: ids `(B, S)` to logits float32 `(B, S, V)`.

    Pre-norm decoder blocks, as in Mixtral (Jiang et al. 2024). Id 0 is
    padding: it is not read, is routed nowhere, counts in no loss that
    `compile` adds, and is never generated. Train it on ids and the same ids
    moved by one, with `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        vocabulary_size: V, padding included.
        max_length: L, the longest sequence that is generated; with learned
            positions the longest at all.
        tie_weights: whether the embeddings are the output matrix, too.
        num_layers: int. Number of transformer blocks.
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
    model = keras_moe.models.MoELanguageModel(
        vocabulary_size=100,
        max_length=12,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_experts=4,
    )
    tokens = model.generate(np.array([[5, 8, 2]]), max_length=6)
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
        embeddings = embedding_layers.embeddings(
            vocabulary_size, max_length, built, tie_weights=tie_weights
        )
        decoder = built.decoder()
        norm = embedding_layers.final_norm(built.dtype)

        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        mask = ops.not_equal(token_ids, embedding_layers.PADDING)
        x = embedding_layers.embedded(embeddings, token_ids)
        for block in decoder:
            ids = router_inputs_of(block, token_ids)
            x = block(x, mask=mask, router_inputs=ids)
        logits = embeddings[0](norm(x), reverse=True)
        arguments = {
            "vocabulary_size": vocabulary_size,
            "max_length": max_length,
            "tie_weights": tie_weights,
            **built.arguments,
        }
        super().__init__(token_ids, logits, arguments, name, dtype, trainable)
        self.vocabulary_size, self.max_length = vocabulary_size, max_length
        self.embeddings = embeddings
        self.decoder, self.norm = decoder, norm

    def empty_cache(self, batch_size: int, max_length: int) -> tuple:
        """Returns a cache for sequences of at most `max_length` tokens."""
        shape = batch_size, max_length
        return tuple(block.empty_cache(*shape) for block in self.decoder)

    def step(self, token_ids: Tensor, cache: tuple, index: int | Tensor = 0):
        """Reads tokens that follow those in the cache.

        Args:
            token_ids: int `(B, S)`.
            cache: from `empty_cache` or an earlier step.
            index: int scalar, the position of the first of them.

        Returns:
            Logits `(B, S, V)`, and the cache with S tokens more.
        """
        x = embedding_layers.embedded(self.embeddings, token_ids, index)
        written = []
        for block, own in zip(self.decoder, cache, strict=True):
            ids = router_inputs_of(block, token_ids)
            x, own = block(x, cache=own, index=index, router_inputs=ids)
            written.append(own)
        logits = self.embeddings[0](self.norm(x), reverse=True)
        return logits, tuple(written)

    def generate(
        self,
        token_ids,
        max_length: int | None = None,
        sampler="greedy",
        stop_token_id: int | Sequence[int] | None = None,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> np.ndarray:
        """Continues prompts.

        The program is compiled at the first call for a batch size, a
        `max_length`, and a sampler, and for prompts of up to 1, 2, 4, 8, ...
        tokens. A change of the model compiles it again; new values of its
        weights do not.

        Args:
            token_ids: int `(B, P)`, prompts; shorter ones have padding (0) on
                the right.
            max_length: length of the result, prompt included; None is the
                model's.
            sampler: `"greedy"`, `"top_k"`, `"top_p"`, `"random"`, one of
                `keras_moe.models.samplers` with other settings, a function of
                its own (see there), or a `keras_hub.samplers.Sampler`.
            stop_token_id: id, or ids, that end a sequence; padding is behind
                them. None ends no sequence.
            seed: int, for what is drawn; None draws anew at every call. A
                keras_hub sampler has a seed of its own.
            use_cache: whether keys and values are kept, so that a token costs
                one position's work; False reads everything again.

        Returns:
            int32 `(B, max_length)`, prompts included.

        Raises:
            ValueError: if the prompts are empty, not integers `(B, P)`,
                outside of the vocabulary, padded on the left, or longer than
                `max_length`; if a stop id is no token of the vocabulary; and
                for another argument out of its range.

        Example:

        ```python
        import numpy as np
        from keras_moe.models import MoELanguageModel, TopP

        model = MoELanguageModel(
            vocabulary_size=50, max_length=16, num_layers=1, hidden_dim=16,
            num_heads=2, intermediate_dim=16, num_experts=4,
        )
        prompts = np.array([[3, 4, 5], [6, 7, 0]])  # the second is shorter
        ids = model.generate(
            prompts, sampler=TopP(0.95), stop_token_id=[1, 2], seed=0
        )
        assert ids.shape == (2, 16)
        ```
        """
        length = self.max_length
        if max_length is not None:
            length = checks.check_positive_int("max_length", max_length)
        use_cache = checks.check_bool("use_cache", use_cache)
        stops = prompts.stop_ids_of(
            "stop_token_id", stop_token_id, self.vocabulary_size
        )
        ids, lengths = prompts.ids_of(token_ids, self.vocabulary_size)
        prompt = prompts.prompt_of(ids, length, self.max_length), lengths
        read = prompts.prefill_length(int(lengths.min()), length)

        def cached(inputs, ids):
            cache = self.empty_cache(ids.shape[0], length)
            return self._next_cached, self.step(ids[:, :read], cache)[1]

        def uncached(inputs, ids):
            return self._next_uncached, ()

        build = cached if use_cache else uncached
        return self.run_generation(build, (), prompt, sampler, stops, seed)

    def _next_cached(self, ids, cache, index):
        last = ops.expand_dims(generation.column(ids, index - 1), -1)
        logits, cache = self.step(last, cache, index - 1)
        return generation.without_padding(logits[:, 0]), None, cache

    def _next_uncached(self, ids, cache, index):
        logits = ops.take(self(ids, training=False), index - 1, axis=1)
        return generation.without_padding(logits), None, cache
