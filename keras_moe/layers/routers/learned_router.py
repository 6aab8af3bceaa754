"""Base class of routers with logits: a linear map, jitter, noise, a bias.

T tokens, D hidden_dim, E experts, N null experts.
"""

from typing import Any

import keras

from keras_moe import checks
from keras_moe.kernels import light_ops as ops
from keras_moe.layers.routers.base_router import BaseRouter, TokenBatch
from keras_moe.types import Shape, Tensor


class LearnedRouter(BaseRouter):
    """Base class of routers with logits: a linear map from tokens to experts.

    A subclass that computes scores in another way implements `build_scores`
    and `scores`.

    Args:
        num_experts: Int, E.
        use_bias: Bool. Whether the logits have a bias, which the choice and
            the weights both follow (GPT-OSS, with `scoring="topk_softmax"`).
            False by default.
        jitter: Float, 0 or above and below 1. In training, the inputs are
            multiplied by noise drawn uniformly from `1 - jitter ... 1 + jitter`
            (Fedus et al. 2021, section 2.2). 0 (the default) adds none; 0.01
            is a typical value.
        noise_std: Float, 0 or above. In training, normal noise with this
            standard deviation is added to the logits. 0 (the default) adds
            none; V-MoE uses `1 / E`.
        logit_softcap: Float, 0 or above. The logits become `cap * tanh(logits
            / cap)` before noise is added, so that they stay below the cap in
            size (Gemma Team 2024, "Gemma 2", section 2, for other logits;
            Laguna for those of the router). 0 (the default) leaves them
            unchanged; 30 is a typical value.
        kernel_initializer, bias_initializer: Keras initializers, or names.
        kernel_regularizer: Keras regularizer, its name, or None (the default).
        router_inputs_dim: Int, D'. Width of the hidden states that the router
            reads in place of its inputs, and that each call must pass as
            `router_inputs` `(..., D')`. Gemma 4 routes by the states before a
            norm, and its experts compute the states after it. `None` (the
            default) reads the inputs.
        **kwargs: Arguments of `BaseRouter`.

    Weights: `kernel` `(D, E + N)`, `bias` `(E + N,)`, both float32. With
    `router_inputs_dim`, D is its value here.

    Example:

    ```python
    class FirstTwo(keras_moe.layers.LearnedRouter):
        top_k = 2  # each token goes to its two best experts

        def route(self, batch):
            return routing.top_k_assignment(
                self.logits(batch), self.top_k, conditions=batch.conditions
            )
    ```
    """

    arguments: tuple[str, ...] = (
        *BaseRouter.arguments,
        "use_bias",
        "jitter",
        "noise_std",
        "logit_softcap",
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "router_inputs_dim",
    )

    expert_axes = {**BaseRouter.expert_axes, "kernel": (1,), "bias": (0,)}

    def __init__(
        self,
        num_experts: int,
        use_bias: bool = False,
        jitter: float = 0.0,
        noise_std: float = 0.0,
        logit_softcap: float = 0.0,
        kernel_initializer: str | keras.initializers.Initializer = (
            "glorot_uniform"
        ),
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        router_inputs_dim: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.router_inputs_dim = checks.check_optional_int(
            "router_inputs_dim", router_inputs_dim
        )
        if self.router_inputs_dim is not None:
            self.router_inputs_use = "required"
            self.router_inputs_kind = "states"
        self.use_bias = checks.check_bool("use_bias", use_bias)
        self.jitter = checks.check_rate("jitter", jitter)
        self.noise_std = checks.check_weight("noise_std", noise_std)
        self.logit_softcap = checks.check_weight("logit_softcap", logit_softcap)
        self.kernel_initializer = checks.check_initializer(
            "kernel_initializer", kernel_initializer
        )
        self.bias_initializer = checks.check_initializer(
            "bias_initializer", bias_initializer
        )
        self.kernel_regularizer = checks.check_regularizer(
            "kernel_regularizer", kernel_regularizer
        )

    load_balancing_weight = 0.01

    @property
    def num_columns(self) -> int:
        """E + N, the width of the logits."""
        return self.num_experts + self.num_null_experts

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        if self.router_inputs_dim is not None:
            input_shape = (*input_shape[:-1], self.router_inputs_dim)
        super().build(input_shape)
        self.build_scores()
        self.bias = None
        if self.use_bias:
            self.bias = self.add_router_weight(
                "bias", (self.num_columns,), self.bias_initializer
            )

    def build_scores(self) -> None:
        """Create the weights of `scores`."""
        self.kernel = self.add_kernel(
            "kernel", (self.hidden_dim, self.num_columns)
        )

    def add_kernel(self, name: str, shape: tuple[int, ...]) -> keras.Variable:
        """Add a weight with the kernel's initializer and regularizer."""
        return self.add_router_weight(
            name,
            shape,
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the logits `(T, E + N)`, without bias and noise.

        Args:
            tokens: Float32 tensor of shape `(T, D)`, with jitter in training.
            batch: The `TokenBatch` of the call.
        """
        return tokens @ ops.convert_to_tensor(self.kernel)

    def logits(self, batch: TokenBatch) -> Tensor:
        """Return the logits with jitter, bias, soft-cap, and noise."""
        tokens = batch.tokens
        if batch.training and self.jitter:
            tokens = tokens * keras.random.uniform(
                ops.shape(tokens),
                1.0 - self.jitter,
                1.0 + self.jitter,
                dtype="float32",
                seed=self.seed_generator,
            )
        logits = self.scores(tokens, batch)
        if self.bias is not None:
            logits = ops.add(logits, self.bias)
        if self.logit_softcap:
            cap = self.logit_softcap
            logits = cap * ops.tanh(logits / cap)
        if batch.training and self.noise_std:
            logits = logits + self.noise_std * self.normal_like(logits)
        return logits

    def normal_like(self, x: Tensor) -> Tensor:
        """Draw float32 standard normal noise of the shape of `x`."""
        return keras.random.normal(
            ops.shape(x), dtype="float32", seed=self.seed_generator
        )
