"""Switching experts off and on.

E experts.
"""

from typing import Any

import numpy as np

from keras_moe.checks import router_checks


class ExpertSwitches:
    """The part of a router that knows which experts are on.

    It works on the weight `expert_enabled` `(E,)`, 1 or 0.
    """

    num_experts: int
    top_k: int
    built: bool
    name: str
    expert_enabled: Any

    @property
    def least_experts(self) -> int:
        """How many experts must be on: as many as a token needs."""
        return min(self.num_experts, max(1, int(self.top_k)))

    def disable_experts(self, expert_indices) -> None:
        """Switches experts off: their tokens go to the next best.

        Nothing is compiled anew: it is a weight that changes, which is saved
        with the others.

        Args:
            expert_indices: iterable of int, each in 0 ... E - 1.

        Raises:
            ValueError: where an index is out of range, fewer experts would
                be left than a token needs, or the router is not built.
        """
        self._check_built()
        found = router_checks.check_expert_indices(
            expert_indices,
            self.num_experts,
            self.least_experts,
            set(self.disabled_experts),
        )
        self._set_enabled(found, 0.0)

    def enable_experts(self, expert_indices=None) -> None:
        """Switches experts on again; None for all.

        Args:
            expert_indices: iterable of int, or None.

        Raises:
            ValueError: where an index is out of range, or the router is not
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
        """The experts that are switched off."""
        enabled = self.expert_enabled.numpy()
        return [e for e, on in enumerate(enabled) if not on]

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "`disable_experts` and `enable_experts` need a built layer. "
                f"Received: {self.name}, not built. Call it on inputs first."
            )

    def _set_enabled(self, indices, value):
        enabled = np.array(self.expert_enabled.numpy())
        enabled[indices] = value
        self.expert_enabled.assign(enabled)
