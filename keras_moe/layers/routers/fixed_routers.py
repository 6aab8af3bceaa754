"""Routers without trained weights: by hash, number, position, or rule.

T tokens, E experts, K top_k.
"""

from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.checks import router_checks
from keras_moe.layers.routers.base_router import BaseRouter, TokenBatch
from keras_moe.layers.tokens import flatten_ids
from keras_moe.routing import Assignment
from keras_moe.routing.fixed import check_default_expert
from keras_moe.types import Tensor

METHODS = ("hash", "modulo", "round_robin")


@keras.saving.register_keras_serializable(package="keras_moe")
class HashRouter(BaseRouter):
    """Chooses the experts of each token by a hash of its id.

    Nothing is learned, so the load cannot collapse, and an id has the same
    experts in every batch. The ids are `router_inputs`, integers of the shape
    of the inputs without their last axis: `block(x, router_inputs=ids)`.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per id, each chosen by its own hash function,
            with the weight 1 / K. 1 by default.
        method: `"hash"` (the default) is pseudo-random; `"modulo"` is expert
            `id mod E` and the K - 1 experts after it; `"round_robin"` goes by
            the token's position in the flattened batch, without ids.
        **kwargs: Arguments of `BaseRouter`. `seed` selects the hash functions;
            `None` (the default) is 0.

    Reference: Roller et al. 2021, "Hash Layers For Large Sparse Models",
    section 3.1.

    Example:

    ```python
    router = keras_moe.HashRouter(4, top_k=1)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    token_ids = np.array([[3, 17, 17, 5, 0]])
    outputs = block(keras.random.normal((1, 5, 16)), router_inputs=token_ids)
    ```
    """

    arguments = (*BaseRouter.arguments, "top_k", "method")

    def __init__(
        self,
        num_experts: int,
        top_k: int = 1,
        method: str = "hash",
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.method = checks.check_choice("method", method, METHODS)
        by_place = method == "round_robin"
        self.reads_tokens = False
        self.causal = not by_place  # positions count all tokens of the batch
        self.router_inputs_use = "none" if by_place else "required"

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose experts by the method."""
        if self.method == "round_robin":
            ids = ops.arange(ops.shape(batch.tokens)[0], dtype="int32")
        else:
            ids = flatten_ids(batch.router_inputs, batch.inputs)
        if self.method == "hash":
            scores = routing.hash_scores(ids, self.num_experts, self.seed or 0)
        else:
            scores = routing.cyclic_scores(ids, self.num_experts)
        return routing.fixed_assignment(scores, self.top_k, batch.conditions)


@keras.saving.register_keras_serializable(package="keras_moe")
class RuleRouter(BaseRouter):
    """Sends each token to the expert that a rule selects, with the weight 1.

    Without a `rule`, `router_inputs` are the expert indices themselves: a
    task, domain, or language id of each token, or of each sequence. -1 means
    that the rule selects no expert. If the expert of a token is switched off,
    the token goes to the default expert, or else to the next expert.

    Args:
        num_experts: Int, E.
        rule: Function `rule(inputs, router_inputs)` that returns integers in
            -1 ... E - 1 of the shape of the inputs without their last axis, or
            of its first axes only. `inputs` are `(..., D)`, and
            `router_inputs` those of the call, or None. A rule must be
            registered with Keras to be saved. A causal model accepts a rule
            only if the function has an attribute `causal = True`, which
            declares that it reads each token separately. `None` (the default)
            uses `router_inputs` as indices.
        default_expert: Int. Expert of the tokens for which the rule returns
            -1. `None` (the default) makes -1 an error.
        **kwargs: Arguments of `BaseRouter`.

    Raises:
        ValueError: If an index is out of range, in a call on values. A
            TensorFlow graph raises its InvalidArgumentError. A program that
            JAX or XLA compiled, or one on CUDA, cannot raise; the output of
            the token is NaN there.

    Reference: Gururangan et al. 2021, "DEMix Layers: Disentangling Domains for
    Modular Language Modeling".

    Example:

    ```python
    router = keras_moe.RuleRouter(4)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    language = np.array([[0, 0, 2, 2, 2]])  # the expert of each token
    outputs = block(keras.random.normal((1, 5, 16)), router_inputs=language)
    ```
    """

    arguments = (*BaseRouter.arguments, "rule", "default_expert")

    def __init__(
        self,
        num_experts: int,
        rule: Callable[[Tensor, Any], Tensor] | None = None,
        default_expert: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.rule = router_checks.check_rule(rule)
        self.reads_tokens = rule is not None
        self.causal = rule is None or getattr(rule, "causal", False)
        self.default_expert = check_default_expert(default_expert, num_experts)
        self.router_inputs_use = "required" if rule is None else "optional"

    def route(self, batch: TokenBatch) -> Assignment:
        """Send each token to the expert that the rule selects."""
        expert = batch.router_inputs
        if self.rule is not None:
            expert = self.rule(batch.inputs, batch.router_inputs)
        expert = flatten_ids(expert, batch.inputs)
        if self.default_expert is not None:
            expert = ops.where(expert == -1, self.default_expert, expert)
        valid = ops.logical_and(expert >= 0, expert < self.num_experts)
        if batch.conditions.token_mask is not None:
            padding = ops.logical_not(batch.conditions.token_mask)
            valid = ops.logical_or(valid, padding)
        valid = kernels.require(
            valid,
            "`router_inputs`, or the output of `rule`, must be in 0 ... "
            f"{self.num_experts - 1}, or -1 if there is a `default_expert`. "
            "Received: a number out of range. Correct it, or set "
            "`default_expert`.",
        )
        scores = routing.rule_scores(
            expert, self.num_experts, self.default_expert
        )
        assignment = routing.fixed_assignment(scores, 1, batch.conditions)
        weights = assignment.combine_weights
        return assignment._replace(
            combine_weights=ops.where(valid, weights, float("nan"))
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes."""
        rule = keras.saving.deserialize_keras_object(config["rule"])
        return cls(**{**config, "rule": rule})
