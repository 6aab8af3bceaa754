"""Base class of mixtures: capacity, losses, and statistics.

U units (tokens or examples), E experts, K top_k, P routed pairs.
"""

import math
from collections.abc import Iterable
from typing import Any

import keras

from keras_moe import checks, kernels, losses, routing
from keras_moe.kernels import light_ops as ops
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.expert_parallel import rows_are_fixed, token_shards
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.routers.base_router import BaseRouter
from keras_moe.layers.scheduled import LossWeight, loss_weight_of
from keras_moe.layers.statistics import RoutingStatistics
from keras_moe.routing import Assignment
from keras_moe.types import Tensor


class Mixture(NamedArguments, MoELayer):
    """Base class of the layers that hold a router and experts.

    Attributes:
        router: A `BaseRouter`, set by the subclass.
        experts: Layer with all experts, set by the subclass.
        expert_load: Float32 `(E,)`. Share of the pairs that chose each expert,
            before capacity drops any, averaged over the training batches since
            `reset_statistics()`.
        fraction_dropped: Float32 `(1,)`. Share of the pairs that capacity
            dropped, averaged over the same batches.
    """

    router: BaseRouter
    experts: keras.layers.Layer
    weights_on = "outputs"  # what the combine weights multiply
    expert_capacity: int | None = None  # pairs per expert and sequence

    def init_mixture(
        self,
        num_experts: int,
        capacity_factor: float | None,
        eval_capacity_factor: float | None,
        priority: str,
        load_balancing: str,
        load_balancing_weight: LossWeight | None,
        router_z_weight: float,
    ) -> None:
        """Check the arguments that all mixtures have, and set them."""
        kernels.keep_losses_apart(self)
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.capacity_factor = checks.check_capacity_factor(
            "capacity_factor", capacity_factor
        )
        self.eval_capacity_factor = checks.check_capacity_factor(
            "eval_capacity_factor", eval_capacity_factor
        )
        self.priority = checks.check_choice(
            "priority", priority, routing.PRIORITIES
        )
        self.load_balancing = check_load_balancing(load_balancing)
        self.load_balancing_weight, self.scheduled_weight = loss_weight_of(
            "load_balancing_weight", load_balancing_weight
        )
        self.router_z_weight = checks.check_weight(
            "router_z_weight", router_z_weight
        )

    def mixture_config(self) -> dict[str, Any]:
        """Return the arguments of `init_mixture`."""
        return {
            "num_experts": self.num_experts,
            "capacity_factor": self.capacity_factor,
            "eval_capacity_factor": self.eval_capacity_factor,
            "priority": self.priority,
            "load_balancing": self.load_balancing,
            "load_balancing_weight": keras.saving.serialize_keras_object(
                self.load_balancing_weight
            ),
            "router_z_weight": self.router_z_weight,
        }

    def build_report(self) -> None:
        """Create the statistics, and the weights of a schedule."""
        checks.check_distribution()
        self.statistics = RoutingStatistics(self.num_experts, name="statistics")
        self.statistics.build()
        if self.scheduled_weight is not None:
            self.scheduled_weight.build()

    def apply_capacity(
        self,
        chosen: Assignment,
        num_units: int | Tensor,
        training: bool | None,
        inputs: Tensor | None = None,
    ) -> tuple[Assignment, int | Tensor | None]:
        """Drop the pairs above the capacity.

        The capacity counts the experts that are on. It counts all experts if
        the shapes of a program must not depend on values: if tokens lie on
        several devices, and on JAX if the experts are layers of any kind.

        Args:
            chosen: The `Assignment` of the router.
            num_units: Int or int32 scalar, U.
            training: Bool.
            inputs: Tensor of shape `(..., S, D)`, needed only for an
                `expert_capacity`.

        Returns:
            The `Assignment` without the dropped pairs, and C, the maximum of
            pairs per expert, or None if there is no capacity. If tokens lie on
            several devices, C holds for the tokens of each device (the groups
            of GShard, Lepikhin et al. 2020, section 2.2).
        """
        if self.expert_capacity is not None:
            return self._apply_sequence_capacity(chosen, ops.shape(inputs))
        factor = self.eval_capacity_factor
        if training and self.trainable:
            factor = self.capacity_factor
        if factor is None:
            return chosen, None
        shards = 1
        if self.router.pairs_per_token is not None:
            shards = token_shards(self.experts, num_units)
        if shards > 1:
            num_units = -(-num_units // shards)
        num_experts: int | Tensor = self.num_experts
        fixed = rows_are_fixed(self.experts, chosen.expert_index)
        if shards == 1 and not fixed:
            num_experts = kernels.num_available(
                chosen.router_logits, num_experts
            )
        capacity = routing.expert_capacity(
            num_units, num_experts, self.router.top_k, factor
        )
        kept = routing.apply_capacity(chosen, capacity, self.priority, shards)
        return kept, capacity

    def _apply_sequence_capacity(
        self, chosen: Assignment, shape: tuple[Any, ...]
    ) -> tuple[Assignment, int | Tensor]:
        """Drop the pairs above the `expert_capacity` of each sequence.

        Args:
            chosen: The `Assignment` of the router.
            shape: `(..., S, D)`, or `(T, D)` for one sequence.
        """
        capacity = self.expert_capacity or 0
        num_sequences = math.prod(shape[:-2])
        pairs = shape[-2] * (self.router.pairs_per_token or 0)
        kept = routing.apply_sequence_capacity(
            chosen, capacity, num_sequences, pairs, self.priority
        )
        return kept, capacity * num_sequences

    def report(
        self,
        chosen: Assignment,
        kept: Assignment,
        mask: Tensor | None,
        inputs: Tensor | None = None,
    ) -> None:
        """Add the losses of a training batch and update the statistics.

        Args:
            chosen, kept: The assignment before and after capacity.
            mask: Bool tensor of shape `(U,)`, False for padding, or None.
            inputs: Tensor of shape `(..., S, D)`, needed only for
                `load_balancing="per_sequence"`.
        """
        length = None
        if self.load_balancing == "per_sequence":
            length = checks.check_sequence_length(ops.shape(inputs))
        self.warn_of_state()
        if self.router.trainable:
            self._add_losses(chosen, mask, length)
        self.statistics.update(chosen.expert_index, kept.expert_index)

    def _add_losses(
        self,
        chosen: Assignment,
        mask: Tensor | None,
        length: int | Tensor | None,
    ) -> None:
        if self.router.has_loss:
            self.add_loss(chosen.router_loss)
        weight = self.load_balancing_weight
        if weight is None:
            weight = self.router.load_balancing_weight
        if weight:
            counted = chosen
            if self.router.balances_first_choice:
                counted = routing.first_choices(
                    chosen, self.router.pairs_per_token or 1
                )
            loss = losses.balancing_loss(
                self.load_balancing, counted, mask, length, over_replicas=True
            )
            if self.scheduled_weight is not None:
                weight = self.scheduled_weight.advance()
            self.add_loss(weight * loss)
        if self.router_z_weight:
            loss = losses.router_z_loss(
                chosen.router_logits, mask, over_replicas=True
            )
            self.add_loss(self.router_z_weight * loss)

    def disable_experts(self, expert_indices: Iterable[int]) -> None:
        """Switch experts off; see `BaseRouter.disable_experts`."""
        self.router.disable_experts(expert_indices)

    def enable_experts(
        self, expert_indices: Iterable[int] | None = None
    ) -> None:
        """Switch experts on again; see `BaseRouter.enable_experts`."""
        self.router.enable_experts(expert_indices)

    @property
    def expert_load(self) -> keras.Variable:
        """Share of the pairs that chose each expert, float32 `(E,)`."""
        return self.statistics.expert_load

    @property
    def fraction_dropped(self) -> keras.Variable:
        """Share of the pairs that capacity dropped, float32 `(1,)`."""
        return self.statistics.fraction_dropped

    def reset_statistics(self) -> None:
        """Reset the running means of load and dropped pairs to zero."""
        self.statistics.reset()


def check_load_balancing(kind: object) -> str:
    """Return `kind` if it is one of the load-balancing losses."""
    if kind is not None and kind is not False:
        return checks.check_choice(
            "load_balancing", kind, losses.LOAD_BALANCING
        )
    raise ValueError(
        f"`load_balancing` must be one of {losses.LOAD_BALANCING}, the kind of "
        f"the loss. Received: load_balancing={kind!r}. Pass "
        "load_balancing_weight=0.0 to train without this loss."
    )
