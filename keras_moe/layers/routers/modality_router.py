"""One router for tokens of several modalities.

T tokens, D hidden_dim, E experts, K top_k, M modalities.
"""

import keras
import numpy as np
from keras import ops

from keras_moe import checks, kernels, losses, routing
from keras_moe.checks import router_checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.layers.tokens import flatten_ids
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class ModalityRouter(LearnedRouter):
    """Routes tokens of text, images, sound ... through one bank of experts,
    and balances each modality by itself (LIMoE: Mustafa et al. 2022).

    A loss over all tokens lets a frequent modality pay for the balance while
    a rare one collapses onto one expert. Here each modality has two entropy
    losses of its own: a local one, which makes a token sure, and a global
    one, which spreads the modality. They come beside the block's
    load-balancing loss, in training alone, over the batches of all replicas
    together. `router_inputs` are the modalities, integers 0 ... M - 1, one a
    token or one a sequence: `block(x, router_inputs=ids)`.

    Args:
        num_experts: E.
        num_modalities: M.
        top_k: K; the paper's is 1.
        normalize_weights: whether a token's K weights are divided by their
            sum; None is True where K is above 1, so that a router learns.
        local_entropy_weight: weight of `losses.local_entropy_loss`, a number
            or one a modality. The paper has it for text alone; 0.01 is a
            start.
        global_entropy_weight: the same for `losses.global_entropy_loss`.
        threshold: tau of the global loss in nats, a number or one a modality:
            about `exp(tau)` experts are enough. None has no threshold.
        modality_bias: whether each modality has a bias of its own on the
            logits.
        experts_of_modality: M sequences of experts, those a modality may use;
            they may overlap, and have K members or more each. None allows
            all (MoMa, Lin et al. 2024, has groups that do not overlap).
        **kwargs: of `LearnedRouter`.

    Weights: `kernel`, `bias`, and `modality_bias` `(M, E)`.

    Raises:
        ValueError: beside `BaseRouter`'s, for a modality outside 0 ... M - 1,
            where it can be seen; see `RuleRouter`. Where it cannot, the
            token's output is NaN.

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
    arguments = (
        *LearnedRouter.arguments,
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
        local_entropy_weight=0.01,
        global_entropy_weight=0.01,
        threshold=None,
        modality_bias: bool = False,
        experts_of_modality=None,
        **kwargs,
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

        def each(name, value):
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
        self.threshold = threshold
        if threshold is not None:
            self.threshold = each("threshold", threshold)
        self.modality_bias = checks.check_bool("modality_bias", modality_bias)
        self.experts_of_modality = router_checks.check_experts_of_modality(
            experts_of_modality,
            self.num_modalities,
            self.num_experts,
            self.top_k,
        )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.modality_bias_weight = None
        if self.modality_bias:
            self.modality_bias_weight = self.add_router_weight(
                "modality_bias",
                (self.num_modalities, self.num_experts),
                self.bias_initializer,
            )

    def route(self, batch: TokenBatch) -> Assignment:
        """Chooses among a modality's experts; adds its entropy losses."""
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

    def _valid(self, ids, token_mask):
        """Bool `(T,)`; raises where an id is none, if it can."""
        valid = ops.logical_and(ids >= 0, ids < self.num_modalities)
        if token_mask is not None:
            valid = ops.logical_or(valid, ops.logical_not(token_mask))
        return kernels.require(
            valid,
            "`router_inputs` must be modalities in 0 ... "
            f"{self.num_modalities - 1}. Received: a number outside. Correct "
            "it, or raise `num_modalities`.",
        )

    def _allowed(self, ids):
        """Bool `(T, E)`, or None where all experts are."""
        if self.experts_of_modality is None:
            return None
        table = np.zeros((self.num_modalities, self.num_experts), "bool")
        for modality, experts in enumerate(self.experts_of_modality):
            table[modality, list(experts)] = True
        return ops.take(ops.convert_to_tensor(table), ids, axis=0)

    def _loss(self, probs: Tensor, ids, batch: TokenBatch):
        """The modalities' entropy losses by their weights, a scalar."""
        if not self.has_loss:
            return ops.zeros((), dtype="float32")
        token_mask, together = batch.conditions.token_mask, batch.training
        given = (probs, ids, self.num_modalities, token_mask)
        tau = None if self.threshold is None else self._row(self.threshold)
        local = losses.local_entropy_loss(*given, together)
        spread = losses.global_entropy_loss(*given, tau, together)
        weighted = self._row(self.local_entropy_weight) * local
        weighted = weighted + self._row(self.global_entropy_weight) * spread
        return ops.sum(weighted)

    def _row(self, value):
        """A number, or one a modality, as float32 `(M,)`."""
        row = np.broadcast_to(np.float32(value), (self.num_modalities,))
        return ops.convert_to_tensor(np.array(row))
