"""A mixture of mixtures.

E experts, G groups, F intermediate_dim, K top_k, M top_k_groups.
"""

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
    """Sends each token to groups of experts, and to experts inside them
    (Shazeer et al. 2017, appendix B, eq. 12; Jordan & Jacobs 1994).

    A `MoEBlock` with a `HierarchicalRouter`: capacity, losses, masks, replay
    and experts that are switched off are as there. With one group it is a
    `MoEBlock`.

    Args:
        num_groups: G, a divisor of E.
        num_experts: E, in all groups together. `None` takes it from `experts`.
        intermediate_dim: F, the inner width of each expert.
        top_k_groups: M, groups of a token.
        top_k: K, experts of a token in all, a multiple of M: K / M in each
            chosen group.
        jitter, seed: of the router too; see `HierarchicalRouter`.
        router: a configured `HierarchicalRouter` with the same arguments, such
            as `other.router`, which is shared with the other block, in memory
            and in a saved model. `None` (the default) builds one.
        **kwargs: of `MoEBlock`.

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
        **kwargs,
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

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        config = super().get_config()
        if not sharing.was_shared(self.router):
            del config["router"]
        names = ("num_groups", *_DEFAULTS)
        return config | {name: getattr(self.router, name) for name in names}


def _router_of(router, num_experts, num_groups, arguments, common):
    """Returns the given router, or one of the arguments."""
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
