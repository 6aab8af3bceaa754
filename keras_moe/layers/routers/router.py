"""The learned token-choice router.

T tokens, D hidden_dim, E experts, N null experts, K top_k, P = T * K pairs.
"""

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.checks.routing_checks import (
    check_groups,
    check_null_experts,
)
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Router(LearnedRouter):
    """Scores every expert for each token and sends it to the K best.

    One linear map from token to expert logits (Shazeer et al. 2017, eq. 2-3,
    without noise). It computes in float32 under every dtype policy: in half
    precision two experts' scores are often equal, and the choice arbitrary.

    Args:
        num_experts: E.
        top_k: K, experts a token is sent to, 1 to E. 1 (Switch) or 2 (Mixtral)
            for few experts, 8 for many small ones.
        scoring: `"softmax"` over all experts, then the K largest;
            `"topk_softmax"` over the K largest logits; `"sigmoid"`, each
            expert for itself. See `keras_moe.routing.top_k_assignment`.
        normalize_weights: whether a token's K weights are divided by their
            sum. With `top_k=1` that makes the weight a constant 1, from which
            a router cannot learn: pass False there (`MoEBlock` does).
        routed_scaling_factor: above 0; the weights are multiplied by it last.
            DeepSeek-V3 has 2.5, for weights that sum to one beside a shared
            expert.
        num_groups: groups of consecutive experts, a divisor of E; 1 is none.
        top_k_groups: from how many of its best groups a token chooses
            (DeepSeek-V2, section 2.1.2; V3 under `"sigmoid"`).
        expert_bias: whether a bias a expert, in the choice and not in the
            weight, keeps the load even without a loss (Wang et al. 2024;
            DeepSeek-V3, eq. 16). It is moved after each training step, and
            under several replicas by the load of all. A block adds no
            load-balancing loss then, unless it is told to.
        expert_bias_step: how far it moves, above 0. 0.001 is the paper's; for
            runs of a few hundred steps 0.01 and more.
        num_null_experts: N, experts that cost nothing (MoE++, Jin et al.
            2024): the first gives zero, the second the token itself, any
            further one a mixture of the token and a learned vector.
        use_bias, jitter, noise_std, kernel_initializer, bias_initializer,
        kernel_regularizer: of the logits; see `LearnedRouter`.
        **kwargs: `expert_dropout`, `seed`, and those of `keras.layers.Layer`;
            see `BaseRouter`.

    Weights: `kernel` `(D, E + N)`, `bias` `(E + N,)`, `expert_bias` `(E,)`
    (not trained by gradients), `expert_enabled` `(E,)`, all float32.

    Call arguments, errors: those of `BaseRouter`.

    Returns:
        An `Assignment` of the flattened tokens; the pairs of token t stand at
        `t * K ... t * K + K-1`, its best expert first.

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
    )

    causal = True
    expert_axes = {**LearnedRouter.expert_axes, "expert_bias_weight": (0,)}

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
        **kwargs,
    ):
        super().__init__(
            num_experts, use_bias=use_bias, jitter=jitter, **kwargs
        )
        self.num_null_experts = checks.check_count(
            "num_null_experts", num_null_experts
        )
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.scoring = checks.check_choice("scoring", scoring, routing.SCORINGS)
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )
        self.routed_scaling_factor = checks.check_above(
            "routed_scaling_factor", routed_scaling_factor, 0, float("inf")
        )
        self.num_groups, self.top_k_groups = check_groups(
            num_experts, top_k, num_groups, top_k_groups
        )
        check_null_experts(num_null_experts, num_groups)
        self.expert_bias = checks.check_bool("expert_bias", expert_bias)
        if self.expert_bias:
            self.load_balancing_weight = 0.0
        self.expert_bias_step = checks.check_above(
            "expert_bias_step", expert_bias_step, 0, float("inf")
        )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.expert_bias_weight = None
        if self.expert_bias:
            self.expert_bias_weight = self.add_router_weight(
                "expert_bias", (self.num_experts,), "zeros", trainable=False
            )

    def route(self, batch: TokenBatch) -> Assignment:
        """Chooses the K best; moves the bias in training."""
        assignment = self.choose(self.logits(batch), batch)
        if batch.training and self.expert_bias_weight is not None:
            self.write(
                self.expert_bias_weight,
                routing.balanced_bias(
                    self.expert_bias_weight.value,
                    assignment.expert_index,
                    self.num_experts,
                    self.expert_bias_step,
                    batch.conditions.available,
                ),
            )
        return assignment

    def choose(self, logits: Tensor, batch: TokenBatch) -> Assignment:
        """Returns the `Assignment` of logits `(T, E + N)`."""
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
        )

    def _column_bias(self):
        """The bias `(E + N,)`, zero for null experts; None without one."""
        weight = self.expert_bias_weight
        if weight is None:
            return None
        bias = kernels.first_value(lambda: weight.value)
        return ops.pad(bias, [[0, self.num_null_experts]])
