"""Learned token-choice router.

T tokens, D hidden_dim, E experts, N null experts, K top_k, P = T * K pairs.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.checks import routing_checks
from keras_moe.layers.null_experts import NULL_OUTPUTS
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment
from keras_moe.routing.capacity import only_tokens
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Router(LearnedRouter):
    """Scores every expert for each token and chooses the K best.

    One linear map from tokens to expert logits, in float32 under every dtype
    policy: in half precision, the scores of two experts are often equal, and
    the choice arbitrary.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per token, 1 to E. 2 by default. 1 (Switch) or 2
            (Mixtral) for few experts, 8 for many small ones.
        scoring: `"softmax"` (the default) over all experts, of which the K
            largest are chosen; `"topk_softmax"` over the K largest logits;
            `"sigmoid"` of each logit (DeepSeek-V3); or `"sqrt_softplus"`, the
            square root of `log(1 + exp(logit))` (DeepSeek-V4). See
            `keras_moe.routing.top_k_assignment`.
        normalize_weights: Bool. Whether a token's K weights are divided by
            their sum. True by default. With `top_k=1` the weight is then a
            constant 1, from which the router cannot learn: pass False
            (`MoEBlock` does).
        routed_scaling_factor: Float above 0, by which the final weights are
            multiplied. 1 by default. DeepSeek-V3 uses 2.5 with normalized
            weights and a shared expert.
        num_groups: Int. Number of groups of consecutive experts, a divisor of
            E. 1 (the default) means no groups.
        top_k_groups: Int. Number of best groups from which a token chooses
            (DeepSeek-V2, section 2.1.2). 1 by default.
        group_score: `"best"`: the score of a group is that of its best expert
            (DeepSeek-V2); `"two_best"`: the sum of its two best (DeepSeek-V3,
            Mistral 4). `"auto"` (the default) is `"two_best"` for `"sigmoid"`
            and `"sqrt_softplus"`, and `"best"` for a softmax.
        expert_bias: Bool. Whether to add a per-expert bias to the routing
            scores, but not to the combine weights, which balances the load
            without a loss (Wang et al. 2024; DeepSeek-V3, eq. 16). The bias is
            updated in each training step by the load of all replicas. A block
            then adds no load-balancing loss unless it gets a weight for it.
            False by default.
        expert_bias_step: Float, 0 or above. Size of each update of the bias.
            0.001 (the default) is the paper's; 0.01 or more suits runs of a few
            hundred steps. 0 keeps the bias fixed, as when a pretrained
            DeepSeek-V3, GLM-4, or ERNIE 4.5 is fine-tuned; the load is then
            balanced only if the block gets a `load_balancing_weight`.
        num_null_experts: Int, N. Experts that cost nothing (MoE++, Jin et al.
            2024): the first returns zero, the second the token, and each
            further one a mixture of the token and a learned vector; see
            `null_outputs`. 0 by default.
        null_outputs: What null experts return: `"mixed"` (the default) is
            zero, the token, and mixtures, as above; `"identity"` is always the
            token, as of the zero-computation experts of LongCat-Flash. The
            `expert_bias` then has an entry for each null expert too, which
            training does not move. Used only with `num_null_experts`.
        normalize_inputs: Bool. Whether the router reads its inputs normalized
            and scaled, `RMSNorm(x) * input_scale / sqrt(D)` (Gemma 4), with a
            learned `input_scale` that starts at one. Jitter comes before it.
            False by default.
        norm_epsilon: Float above 0, added to the mean square of the inputs.
            1e-6 by default. Used only with `normalize_inputs`.
        expert_scale: Bool. Whether the weights of each expert are multiplied by
            a learned factor, which starts at one, after they are normalized
            (Gemma 4's `per_expert_scale`). False by default.
        use_bias, jitter, noise_std, logit_softcap, kernel_initializer,
        bias_initializer, kernel_regularizer: Arguments of `LearnedRouter`, for
            the logits.
        **kwargs: Arguments of `BaseRouter`: `expert_dropout`, `seed`, and those
            of `keras.layers.Layer`.

    Weights: `kernel` `(D, E + N)`, `bias` `(E + N,)`, `input_scale` `(D,)`,
    `expert_scale` `(E,)`, `expert_bias` `(E,)` (`(E + N,)` if
    `null_outputs="identity"`; not trained by gradients), `expert_enabled`
    `(E,)`, all float32.

    Call arguments and errors are those of `BaseRouter`.

    Returns:
        An `Assignment` of the flattened tokens. The pairs of token t are at
        `t * K ... t * K + K-1`, its best expert first.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq.
    2-3, without the noise.

    Example:

    ```python
    router = keras_moe.Router(4, top_k=2, scoring="sigmoid", expert_bias=True)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (
        *LearnedRouter.arguments,
        "top_k",
        "scoring",
        "normalize_weights",
        "routed_scaling_factor",
        "num_groups",
        "top_k_groups",
        "expert_bias",
        "expert_bias_step",
        "num_null_experts",
        "group_score",
        "normalize_inputs",
        "norm_epsilon",
        "expert_scale",
        "null_outputs",
    )

    causal = True
    expert_axes = {
        **LearnedRouter.expert_axes,
        "expert_bias_weight": (0,),
        "expert_scale_weight": (0,),
    }

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        scoring: str = "softmax",
        normalize_weights: bool = True,
        use_bias: bool = False,
        jitter: float = 0.0,
        routed_scaling_factor: float = 1.0,
        num_groups: int = 1,
        top_k_groups: int = 1,
        expert_bias: bool = False,
        expert_bias_step: float = 0.001,
        num_null_experts: int = 0,
        group_score: str = "auto",
        normalize_inputs: bool = False,
        norm_epsilon: float = 1e-6,
        expert_scale: bool = False,
        null_outputs: str = "mixed",
        **kwargs: Any,
    ):
        super().__init__(
            num_experts, use_bias=use_bias, jitter=jitter, **kwargs
        )
        self.num_null_experts = checks.check_count(
            "num_null_experts", num_null_experts
        )
        self.null_outputs = checks.check_choice(
            "null_outputs", null_outputs, NULL_OUTPUTS
        )
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.scoring = checks.check_choice("scoring", scoring, routing.SCORINGS)
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )
        self.routed_scaling_factor = checks.check_above(
            "routed_scaling_factor", routed_scaling_factor, 0, float("inf")
        )
        self.num_groups, self.top_k_groups = routing_checks.check_groups(
            num_experts, top_k, num_groups, top_k_groups
        )
        self.group_score = checks.check_choice(
            "group_score", group_score, routing.GROUP_SCORES
        )
        routing_checks.check_null_experts(num_null_experts, num_groups)
        self.expert_bias = checks.check_bool("expert_bias", expert_bias)
        if self.expert_bias:
            self.load_balancing_weight = 0.0
        self.expert_bias_step = checks.check_weight(
            "expert_bias_step", expert_bias_step
        )
        self.normalize_inputs = checks.check_bool(
            "normalize_inputs", normalize_inputs
        )
        self.norm_epsilon = checks.check_above(
            "norm_epsilon", norm_epsilon, 0, float("inf")
        )
        self.expert_scale = checks.check_bool("expert_scale", expert_scale)

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.expert_bias_weight = None
        if self.expert_bias:
            size = self.num_experts
            if self.null_outputs == "identity":
                size = self.num_columns
            self.expert_bias_weight = self.add_router_weight(
                "expert_bias", (size,), "zeros", trainable=False
            )
        self.input_scale = None
        if self.normalize_inputs:
            self.input_scale = self.add_router_weight(
                "input_scale", (self.hidden_dim,), "ones"
            )
        self.expert_scale_weight = None
        if self.expert_scale:
            self.expert_scale_weight = self.add_router_weight(
                "expert_scale", (self.num_experts,), "ones"
            )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the logits `(T, E + N)` of the tokens, maybe normalized."""
        if self.input_scale is not None:
            mean_square = ops.mean(ops.square(tokens), axis=-1, keepdims=True)
            tokens = tokens * ops.rsqrt(mean_square + self.norm_epsilon)
            tokens = tokens * (self.input_scale * self.hidden_dim**-0.5)
        return super().scores(tokens, batch)

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose the K best experts; in training, update the bias."""
        assignment = self.choose(self.logits(batch), batch)
        bias, scale = self.expert_bias_weight, self.expert_scale_weight
        if batch.training and bias is not None and self.expert_bias_step:
            self._move_bias(bias, assignment, batch)
        if scale is not None:
            assignment = routing.scale_weights(assignment, scale)
        return assignment

    def choose(self, logits: Tensor, batch: TokenBatch) -> Assignment:
        """Return the `Assignment` of logits `(T, E + N)`."""
        return routing.top_k_assignment(
            logits,
            self.top_k,
            self.scoring,
            self.normalize_weights,
            batch.conditions,
            self._column_bias(),
            self.num_groups,
            self.top_k_groups,
            self.routed_scaling_factor,
            self.num_null_experts,
            self.group_score,
        )

    def _column_bias(self) -> Tensor | None:
        """Return the bias `(E + N,)`, or None."""
        weight = self.expert_bias_weight
        if weight is None:
            return None
        bias = kernels.first_value(lambda: weight.value)
        if self.null_outputs == "identity":
            return bias
        return ops.pad(bias, [[0, self.num_null_experts]])

    def _move_bias(
        self, weight: keras.Variable, assignment: Assignment, batch: TokenBatch
    ) -> None:
        """Move the bias of each expert against the load."""
        bias = weight.value
        moved = routing.balanced_bias(
            bias[: self.num_experts],
            only_tokens(assignment, batch.conditions.loss_mask).expert_index,
            self.num_experts,
            self.expert_bias_step,
            batch.conditions.available,
        )
        if self.null_outputs == "identity":
            moved = ops.concatenate([moved, bias[self.num_experts :]])
        self.write(weight, moved)
