"""Mixture-of-experts block with groups of experts.

E experts, G groups, F intermediate_dim, K top_k, M top_k_groups.
"""

from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers import block_parts, sharing
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.routers import HierarchicalRouter

_ROUTER = (
    "None or a HierarchicalRouter",
    "Pass, for instance, `other.router` of another HierarchicalMoE.",
)
_DEFAULTS = {"top_k_groups": 1, "top_k": 2, "jitter": 0.0}


@keras.saving.register_keras_serializable(package="keras_moe")
class HierarchicalMoE(MoEBlock):
    """Sends each token to groups of experts, and to experts in these groups.

    A `MoEBlock` with a `HierarchicalRouter`: capacity, losses, masks, replay,
    and switched-off experts work as in `MoEBlock`. With one group it is a
    `MoEBlock`.

    Args:
        num_groups: Int, G, a divisor of E.
        num_experts: Int, E. Number of experts in all groups together. `None`
            (the default) takes it from `experts`.
        intermediate_dim: Int, F. Inner width of each expert. `None` (the
            default) if `experts` is given.
        top_k_groups: Int, M. Groups per token. 1 by default.
        top_k: Int, K, a multiple of M. Experts per token, K / M in each chosen
            group. 2 by default.
        jitter: Float. Argument of `HierarchicalRouter`. 0 by default.
        seed: Int. Seed of the router and the experts. `None` (the default)
            draws one.
        router: A `HierarchicalRouter` with the same arguments. The `router` of
            another block is shared with that block, in memory and in a saved
            model. `None` (the default) builds one.
        **kwargs: Arguments of `MoEBlock`.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    appendix B, eq. 12; Jordan & Jacobs 1994.

    Example:

    ```python
    layer = keras_moe.HierarchicalMoE(
        num_groups=2, num_experts=8, intermediate_dim=32, top_k=2
    )
    outputs = layer(keras.random.normal((2, 5, 16)))
    ```
    """

    def __init__(
        self,
        num_groups: int,
        num_experts: int | None = None,
        intermediate_dim: int | None = None,
        top_k_groups: int = 1,
        top_k: int = 2,
        jitter: float = 0.0,
        seed: int | None = None,
        router: HierarchicalRouter | None = None,
        **kwargs: Any,
    ):
        experts = block_parts.shared_experts_of(
            kwargs.get("experts"), kwargs.get("share_experts_with")
        )
        num_experts = block_parts.num_experts_of(num_experts, experts, None)
        arguments = {
            "top_k_groups": top_k_groups,
            "top_k": top_k,
            "jitter": jitter,
        }
        common = {"seed": seed, "dtype": kwargs.get("dtype")}
        router = _router_of(router, num_experts, num_groups, arguments, common)
        super().__init__(
            num_experts, intermediate_dim, router=router, seed=seed, **kwargs
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        config = super().get_config()
        if not sharing.was_shared(self.router):
            del config["router"]
        names = ("num_groups", *_DEFAULTS)
        return config | {name: getattr(self.router, name) for name in names}


def _router_of(
    router: HierarchicalRouter | None,
    num_experts: int,
    num_groups: int,
    arguments: dict[str, Any],
    common: dict[str, Any],
) -> HierarchicalRouter:
    """Return the given router, or one built from the arguments."""
    if router is None:
        return HierarchicalRouter(
            num_experts, num_groups, name="router", **arguments, **common
        )
    checks.check_is_a("router", router, HierarchicalRouter, *_ROUTER)
    if router.num_groups != num_groups:
        raise ValueError(
            "`router` must have the layer's `num_groups`. Received: "
            f"num_groups={num_groups}, router with "
            f"num_groups={router.num_groups}. Build both with the same number."
        )
    block_parts.check_nothing_lost("router", router, arguments, _DEFAULTS)
    return router
