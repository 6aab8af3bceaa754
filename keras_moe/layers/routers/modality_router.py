"""Router for tokens of several modalities.

T tokens, D hidden_dim, E experts, K top_k, M modalities.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import checks, kernels, losses, routing
from keras_moe.checks import router_checks
from keras_moe.layers.routers.base_router import TokenBatch, without
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.layers.tokens import flatten_ids
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class ModalityRouter(LearnedRouter):
    """Routes tokens of several modalities and balances each one separately.

    With one loss over all tokens, a frequent modality can balance the load
    while a rare one collapses onto one expert. Here each modality has two
    entropy losses: a local loss, which makes the choice of each token certain,
    and a global loss, which spreads the modality over experts. They are added
    to the block's load-balancing loss, only in training, and cover the batches
    of all replicas together. `router_inputs` are the modalities, integers in
    0 ... M - 1, one per token or one per sequence:
    `block(x, router_inputs=ids)`.

    Args:
        num_experts: Int, E.
        num_modalities: Int, M.
        top_k: Int, K. Experts per token. 2 by default; the paper's is 1.
        normalize_weights: Bool. Whether a token's K weights are divided by
            their sum. `None` (the default) divides if K is above 1; the single
            weight of K = 1 must stay a probability for the router to learn.
        local_entropy_weight: Float, 0 or above, or a list with one per
            modality. Weight of `losses.local_entropy_loss`. 0.01 by default;
            the paper uses this loss only for text.
        global_entropy_weight: Float, 0 or above, or a list with one per
            modality. Weight of `losses.global_entropy_loss`. 0.01 by default.
        threshold: Float, or a list with one per modality. tau of the global
            loss in nats: a modality that uses about `exp(tau)` experts or more
            has no global loss. `None` (the default) is no threshold.
        modality_bias: Bool. Whether each modality has its own bias of the
            logits. False by default.
        experts_of_modality: List of M lists of experts that a modality may
            use. They may overlap, and each has at least K members. `None` (the
            default) allows all experts. (The groups of MoMa, Lin et al. 2024,
            do not overlap.)
        **kwargs: Arguments of `LearnedRouter`.

    Weights: `kernel`, `bias`, and `modality_bias` `(M, E)`.

    Raises:
        ValueError: As `BaseRouter`, and if a modality is outside 0 ... M - 1.
            Programs that cannot raise (see `RuleRouter`) return NaN for the
            token.

    Reference: Mustafa et al. 2022, "Multimodal Contrastive Learning with LIMoE:
    the Language-Image Mixture of Experts".

    Example:

    ```python
    router = keras_moe.ModalityRouter(4, num_modalities=2, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    modality = np.array([[0, 0, 1, 1, 1]])  # of each token
    outputs = block(keras.random.normal((1, 5, 16)), router_inputs=modality)
    ```
    """

    causal = True
    expert_axes = {**LearnedRouter.expert_axes, "modality_bias_weight": (1,)}
    fixed_arguments = (*LearnedRouter.fixed_arguments, "router_inputs_dim")
    arguments = (
        *without(LearnedRouter.arguments, *fixed_arguments),
        "num_modalities",
        "top_k",
        "normalize_weights",
        "local_entropy_weight",
        "global_entropy_weight",
        "threshold",
        "modality_bias",
        "experts_of_modality",
    )
    router_inputs_use = "required"

    def __init__(
        self,
        num_experts: int,
        num_modalities: int,
        top_k: int = 2,
        normalize_weights: bool | None = None,
        local_entropy_weight: float | Sequence[float] = 0.01,
        global_entropy_weight: float | Sequence[float] = 0.01,
        threshold: float | Sequence[float] | None = None,
        modality_bias: bool = False,
        experts_of_modality: Sequence[Iterable[int]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.num_modalities = checks.check_positive_int(
            "num_modalities", num_modalities
        )
        self.top_k = checks.check_top_k(top_k, num_experts)
        if normalize_weights is None:
            normalize_weights = self.top_k > 1
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )

        def each(name: str, value: object) -> float | list[float]:
            return router_checks.check_weights(name, value, self.num_modalities)

        self.local_entropy_weight = each(
            "local_entropy_weight", local_entropy_weight
        )
        self.global_entropy_weight = each(
            "global_entropy_weight", global_entropy_weight
        )
        self.has_loss = bool(
            np.any(self.local_entropy_weight)
            or np.any(self.global_entropy_weight)
        )
        self.threshold = (
            None if threshold is None else each("threshold", threshold)
        )
        self.modality_bias = checks.check_bool("modality_bias", modality_bias)
        self.experts_of_modality = router_checks.check_experts_of_modality(
            experts_of_modality,
            self.num_modalities,
            self.num_experts,
            self.top_k,
        )

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.modality_bias_weight = None
        if self.modality_bias:
            self.modality_bias_weight = self.add_router_weight(
                "modality_bias",
                (self.num_modalities, self.num_experts),
                self.bias_initializer,
            )

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose among the experts of a modality; add its entropy losses."""
        ids = flatten_ids(batch.router_inputs, batch.inputs)
        token_mask = batch.conditions.token_mask
        valid = self._valid(ids, token_mask)
        known = ops.clip(ids, 0, self.num_modalities - 1)
        logits = self.logits(batch)
        if self.modality_bias_weight is not None:
            bias = ops.convert_to_tensor(self.modality_bias_weight)
            logits = logits + ops.take(bias, known, axis=0)
        assignment = routing.modality_assignment(
            logits,
            self._allowed(known),
            self.top_k,
            self.normalize_weights,
            batch.conditions,
        )
        weights = ops.reshape(assignment.combine_weights, (-1, self.top_k))
        weights = ops.where(ops.expand_dims(valid, -1), weights, float("nan"))
        return assignment._replace(
            combine_weights=ops.reshape(weights, (-1,)),
            router_loss=self._loss(assignment.router_probs, ids, batch),
        )

    def _valid(self, ids: Tensor, token_mask: Tensor | None) -> Tensor:
        """Return which ids are modalities, bool `(T,)`; raise if possible."""
        valid = ops.logical_and(ids >= 0, ids < self.num_modalities)
        if token_mask is not None:
            valid = ops.logical_or(valid, ops.logical_not(token_mask))
        return kernels.require(
            valid,
            "`router_inputs` must be modalities in 0 ... "
            f"{self.num_modalities - 1}. Received: a number out of range. "
            "Correct it, or raise `num_modalities`.",
        )

    def _allowed(self, ids: Tensor) -> Tensor | None:
        """Return the experts each token may use, bool `(T, E)`; None if all."""
        if self.experts_of_modality is None:
            return None
        table = np.zeros((self.num_modalities, self.num_experts), "bool")
        for modality, experts in enumerate(self.experts_of_modality):
            table[modality, list(experts)] = True
        return ops.take(ops.convert_to_tensor(table), ids, axis=0)

    def _loss(self, probs: Tensor, ids: Tensor, batch: TokenBatch) -> Tensor:
        """Return the weighted sum of the entropy losses, a scalar."""
        if not self.has_loss:
            return ops.zeros((), dtype="float32")
        counted, together = batch.conditions.counted, batch.training
        given = (probs, ids, self.num_modalities, counted)
        tau = None if self.threshold is None else self._row(self.threshold)
        local = losses.local_entropy_loss(*given, together)
        spread = losses.global_entropy_loss(*given, tau, together)
        weighted = self._row(self.local_entropy_weight) * local
        weighted = weighted + self._row(self.global_entropy_weight) * spread
        return ops.sum(weighted)

    def _row(self, value: float | list[float]) -> Tensor:
        """Return a number, or one per modality, as float32 `(M,)`."""
        row = np.broadcast_to(
            np.asarray(value, "float32"), (self.num_modalities,)
        )
        return ops.convert_to_tensor(np.array(row))
