"""Routers without weights: by hash, by number, by place, by rule.

T tokens, E experts, K top_k.
"""

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.checks import router_checks
from keras_moe.layers.routers.base_router import BaseRouter, TokenBatch
from keras_moe.layers.tokens import flatten_ids
from keras_moe.routing import Assignment
from keras_moe.routing.fixed import check_default_expert

METHODS = ("hash", "modulo", "round_robin")


@keras.saving.register_keras_serializable(package="keras_moe")
class HashRouter(BaseRouter):
    """Sends each token to experts that follow from its id alone (Roller et
    al. 2021, "Hash Layers For Large Sparse Models").

    Nothing is learned, nothing collapses, and an id has the same experts in
    every batch. The ids are `router_inputs`, integers of the shape of the
    inputs without their last axis: `block(x, router_inputs=ids)`.

    Args:
        num_experts: E.
        top_k: K, experts of an id, each by a hash function of its own, with
            the weight 1 / K.
        method: `"hash"`, pseudo-random; `"modulo"`, expert `id mod E` and the
            K - 1 behind it; `"round_robin"`, by the token's place in the
            flattened batch, for which no ids are given.
        seed: another one gives other hash functions; None is 0.
        **kwargs: of `BaseRouter`.

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
        **kwargs,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.method = checks.check_choice("method", method, METHODS)
        by_place = method == "round_robin"
        self.reads_tokens = False
        self.causal = not by_place  # places change from batch to batch
        self.router_inputs_use = "none" if by_place else "required"

    def route(self, batch: TokenBatch) -> Assignment:
        """Chooses by the method."""
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
    """Sends each token to the expert that a rule names, with the weight 1.

    Without a `rule`, `router_inputs` are the experts' numbers themselves: a
    task, domain or language id of each token, or of each sequence (DEMix:
    Gururangan et al. 2021). -1 says that no rule claims the token. A token of
    an expert that is switched off goes to the default, then to the next.

    Args:
        num_experts: E.
        rule: function `rule(inputs, router_inputs)` of the inputs `(..., D)`
            and of what was passed as `router_inputs` (None if nothing),
            which returns integers -1 ... E - 1 of the shape of the inputs
            without their last axis, or of its first axes; or None. To be
            saved it must be registered with Keras. Causal models take one
            that claims, by an attribute `causal = True` of the function, to
            look at each token by itself.
        default_expert: expert of the tokens that no rule claims, or None,
            which makes -1 an error.
        **kwargs: of `BaseRouter`.

    Raises:
        ValueError: for a number out of range, where it can be seen: in a call
            on values, and in a TensorFlow graph, as its InvalidArgumentError.
            A program that JAX or XLA compiled, or one on CUDA, cannot raise;
            there the token's output is NaN.

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
        rule=None,
        default_expert: int | None = None,
        **kwargs,
    ):
        super().__init__(num_experts, **kwargs)
        self.rule = router_checks.check_rule(rule)
        self.reads_tokens = rule is not None
        self.causal = rule is None or getattr(rule, "causal", False)
        self.default_expert = check_default_expert(default_expert, num_experts)
        self.router_inputs_use = "required" if rule is None else "optional"

    def route(self, batch: TokenBatch) -> Assignment:
        """Asks the rule."""
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
            "`router_inputs`, or what `rule` returns, must be in 0 ... "
            f"{self.num_experts - 1}, or -1 where there is a `default_expert`. "
            "Received: a number outside. Correct it, or set `default_expert`.",
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
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        rule = keras.saving.deserialize_keras_object(config["rule"])
        return cls(**{**config, "rule": rule})
