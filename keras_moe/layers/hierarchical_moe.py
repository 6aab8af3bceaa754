"""A mixture of mixtures.

E experts, G groups, F intermediate_dim, K top_k, M top_k_groups.
"""

import keras

from keras_moe.layers import parts
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.routers import HierarchicalRouter


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
        **kwargs: of `MoEBlock`, without `router`.
    """

    fixed_arguments = ("router",)

    def __init__(
        self,
        num_groups: int,
        num_experts: int | None = None,
        intermediate_dim: int | None = None,
        top_k_groups: int = 1,
        top_k: int = 2,
        jitter: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        experts = parts.shared_experts_of(
            kwargs.get("experts"), kwargs.get("share_experts_with")
        )
        num_experts = parts.num_experts_of(num_experts, experts, None)
        router = HierarchicalRouter(
            num_experts,
            num_groups,
            top_k=top_k,
            top_k_groups=top_k_groups,
            jitter=jitter,
            seed=seed,
            name="router",
            dtype=kwargs.get("dtype"),
        )
        super().__init__(
            num_experts, intermediate_dim, router=router, seed=seed, **kwargs
        )

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        config = super().get_config()
        del config["router"]
        router = self.router
        return config | {
            "num_groups": router.num_groups,
            "top_k_groups": router.top_k_groups,
            "top_k": router.top_k,
            "jitter": router.jitter,
        }
