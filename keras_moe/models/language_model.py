"""A causal language model.

B batch, S sequence length, P prompt length, L max_length, V vocabulary_size.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
    """Predict each next token: ids `(B, S)` to logits float32 `(B, S, V)`.

    The model has pre-norm decoder blocks, as Mixtral (Jiang et al. 2024). Id 0
    is padding: no other token attends to it, it is excluded from routing and
    from the losses that `compile` adds, and it is never generated. Train it on
    ids and the same ids shifted by one, with
    `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        vocabulary_size: Positive int. V, padding included.
        max_length: Positive int. L, the length of the longest generated
            sequence, prompt included. With learned positions, this is the
            longest input, too.
        tie_weights: bool. Whether the output matrix is the transposed
            embedding matrix. Defaults to `True`.
        num_layers: Positive int. Number of transformer blocks.
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

    def empty_cache(
        self, batch_size: int, max_length: int
    ) -> tuple[generation.Cache, ...]:
        """Return an empty cache for sequences of up to `max_length` tokens."""
        shape = batch_size, max_length
        return tuple(block.empty_cache(*shape) for block in self.decoder)

    def step(
        self,
        token_ids: Tensor,
        cache: tuple[generation.Cache, ...],
        index: int | Tensor = 0,
    ) -> tuple[Tensor, tuple[generation.Cache, ...]]:
        """Compute the logits of tokens that follow those in the cache.

        Args:
            token_ids: int `(B, S)`.
            cache: Cache from `empty_cache` or an earlier step.
            index: int scalar. Position of the first of the tokens. Defaults to
                0.

        Returns:
            Logits `(B, S, V)`, and the cache with S more tokens.
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
        token_ids: Any,
        max_length: int | None = None,
        sampler: str | Callable[..., Tensor] = "greedy",
        stop_token_id: int | Sequence[int] | None = None,
        seed: int | None = None,
        use_cache: bool = True,
    ) -> np.ndarray:
        """Continue prompts.

        The program is compiled at the first call for a batch size, a
        `max_length`, and a sampler, and for prompts of up to 1, 2, 4, 8, ...
        tokens. A change of the model compiles it again; new values of its
        weights do not.

        Args:
            token_ids: int `(B, P)`. Prompts; shorter ones have padding (0) on
                the right.
            max_length: int in P ... L, or None. Length of the result, prompt
                included. `None` (the default) means the model's `max_length`.
            sampler: str, function, or `keras_hub.samplers.Sampler`.
                `"greedy"` (the default), `"top_k"`, `"top_p"`, `"random"`, an
                object such as `TopP(0.95)`, or a function of logits and
                uniform random numbers, as `keras_moe.models.samplers`
                describes it.
            stop_token_id: int, sequence of ints, or None. Ids that end a
                sequence, which is padded behind them. `None` (the default)
                ends no sequence before `max_length`.
            seed: int or None. Seed of random draws. `None` (the default) draws
                differently at every call. A keras_hub sampler has a seed of
                its own.
            use_cache: bool. Whether keys and values are cached, so that each
                step computes one position. Defaults to `True`. `False`
                computes all positions at each step.

        Returns:
            int32 `(B, max_length)`, prompts included.

        Raises:
            ValueError: If the prompts are empty, not integers `(B, P)`,
                outside the vocabulary, padded on the left, or longer than
                `max_length`; if a stop id is no token of the vocabulary; or if
                another argument has a wrong type or is out of its range.

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
        length = self._length_of(max_length)
        use_cache = checks.check_bool("use_cache", use_cache)
        stops = prompts.stop_ids_of(
            "stop_token_id", stop_token_id, self.vocabulary_size
        )
        ids, lengths = prompts.ids_of(token_ids, self.vocabulary_size)
        prompt = prompts.prompt_of(ids, length, self.max_length), lengths
        read = prompts.prefill_length(int(lengths.min()), length)

        def cached(inputs: tuple[()], ids: Tensor) -> generation.Start:
            cache = self.empty_cache(ids.shape[0], length)
            return self._next_cached, self.step(ids[:, :read], cache)[1]

        def uncached(inputs: tuple[()], ids: Tensor) -> generation.Start:
            return self._next_uncached, ()

        build = cached if use_cache else uncached
        return self.run_generation(build, (), prompt, sampler, stops, seed)

    def _next_uncached(
        self, ids: Tensor, cache: generation.Cache, index: Tensor
    ) -> generation.NextLogits:
        logits = ops.take(self(ids, training=False), index - 1, axis=1)
        return generation.without_padding(logits), None, cache
