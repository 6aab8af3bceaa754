"""What routers with logits share: the linear map, jitter, noise, bias.

T tokens, D hidden_dim, E experts, N null experts.
"""

import keras

from keras_moe import checks
from keras_moe.kernels import light_ops as ops
from keras_moe.layers.routers.base_router import BaseRouter, TokenBatch
from keras_moe.types import Shape, Tensor


class LearnedRouter(BaseRouter):
    """Base of routers with logits: a linear map from token to experts.

    A relative that scores otherwise writes `build_scores` and `scores`.

    Args:
        num_experts: E.
        use_bias: whether the logits have a bias.
        jitter: float; in training the inputs are multiplied by noise drawn
            uniformly from `1 - jitter ... 1 + jitter` (Fedus et al. 2021,
            section 2.2). 0.01 is a start.
        noise_std: float; in training normal noise of this standard deviation
            is added to the logits. `1 / E` is V-MoE's.
        kernel_initializer, bias_initializer: Keras initializers.
        kernel_regularizer: Keras regularizer.
        **kwargs: of `BaseRouter`.

    Weights: `kernel` `(D, E + N)`, `bias` `(E + N,)`, both float32.

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
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
    )

    expert_axes = {**BaseRouter.expert_axes, "kernel": (1,), "bias": (0,)}

    def __init__(
        self,
        num_experts: int,
        use_bias: bool = False,
        jitter: float = 0.0,
        noise_std: float = 0.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(num_experts, **kwargs)
        self.use_bias = checks.check_bool("use_bias", use_bias)
        self.jitter = checks.check_rate("jitter", jitter)
        self.noise_std = checks.check_weight("noise_std", noise_std)
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
        """Creates the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.build_scores()
        self.bias = None
        if self.use_bias:
            self.bias = self.add_router_weight(
                "bias", (self.num_columns,), self.bias_initializer
            )

    def build_scores(self) -> None:
        """Creates the weights of `scores`."""
        self.kernel = self.add_kernel(
            "kernel", (self.hidden_dim, self.num_columns)
        )

    def add_kernel(self, name, shape):
        """Adds a weight with the kernel's initializer and regularizer."""
        return self.add_router_weight(
            name,
            shape,
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Returns logits `(T, E + N)` of the tokens `(T, D)`, jittered."""
        return tokens @ ops.convert_to_tensor(self.kernel)

    def logits(self, batch: TokenBatch) -> Tensor:
        """Returns the router logits `(T, E + N)` with bias, jitter, noise."""
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
        if batch.training and self.noise_std:
            logits = logits + self.noise_std * self.normal_like(logits)
        return logits

    def normal_like(self, x: Tensor) -> Tensor:
        """Draws standard normal noise of the shape of `x`, float32."""
        return keras.random.normal(
            ops.shape(x), dtype="float32", seed=self.seed_generator
        )
