"""Switch experts off and on.

E experts.
"""

from collections.abc import Iterable

import keras
import numpy as np

from keras_moe import kernels
from keras_moe.checks import router_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.types import Tensor


class ExpertSwitches:
    """Mixin of routers that switches experts off and on.

    The switches are the weight `expert_enabled` `(E,)`, 1 or 0.
    """

    num_experts: int
    top_k: int
    built: bool
    name: str
    expert_enabled: keras.Variable
    expert_dropout: float
    seed_generator: keras.random.SeedGenerator

    @property
    def least_experts(self) -> int:
        """Number of experts that must be on: as many as a token needs."""
        return min(self.num_experts, max(1, int(self.top_k)))

    def disable_experts(self, expert_indices: Iterable[int]) -> None:
        """Switch experts off: their tokens go to the next best experts.

        Nothing is compiled again. The switches are a weight, which is saved
        with the other weights.

        Args:
            expert_indices: Iterable of int, each in 0 ... E - 1.

        Raises:
            ValueError: If an index is out of range, if fewer experts would
                stay on than a token needs, or if the router is not built.
        """
        self._check_built()
        found = router_checks.check_expert_indices(
            expert_indices,
            self.num_experts,
            self.least_experts,
            set(self.disabled_experts),
        )
        self._set_enabled(found, 0.0)

    def enable_experts(
        self, expert_indices: Iterable[int] | None = None
    ) -> None:
        """Switch experts on again.

        Args:
            expert_indices: Iterable of int, each in 0 ... E - 1. `None` (the
                default) switches all experts on.

        Raises:
            ValueError: If an index is out of range, or if the router is not
                built.
        """
        self._check_built()
        if expert_indices is None:
            expert_indices = range(self.num_experts)
        found = router_checks.check_expert_indices(
            expert_indices, self.num_experts, 0, set()
        )
        self._set_enabled(found, 1.0)

    @property
    def disabled_experts(self) -> list[int]:
        """List of the experts that are switched off."""
        enabled = self.expert_enabled.numpy()
        return [e for e, on in enumerate(enabled) if not on]

    def drop_experts(self, available: Tensor) -> Tensor:
        """Leave out experts at random, at the rate `expert_dropout`.

        Args:
            available: Bool tensor of shape `(E,)`, the experts that are on.

        Returns:
            Bool tensor of shape `(E,)`. As many experts as a token needs stay.
        """
        drawn = keras.random.uniform(
            (self.num_experts,), seed=self.seed_generator, dtype="float32"
        )
        drawn = ops.where(available, drawn, -1.0)
        least = kernels.top_k_index(drawn[None], self.least_experts)[0]
        experts = ops.arange(self.num_experts, dtype="int32")
        stays = ops.any(ops.equal(least[:, None], experts), axis=0)
        kept = ops.logical_or(drawn >= self.expert_dropout, stays)
        return ops.logical_and(available, kept)

    def _check_built(self) -> None:
        if not self.built:
            raise ValueError(
                "`disable_experts` and `enable_experts` need a built layer. "
                f"Received: {self.name}, not built. Call it on inputs first."
            )

    def _set_enabled(self, indices: list[int], value: float) -> None:
        enabled = np.array(self.expert_enabled.numpy())
        enabled[indices] = value
        self.expert_enabled.assign(enabled)
