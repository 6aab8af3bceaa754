"""The blocks that a model is built from, MoE or dense.

F intermediate_dim, E experts, K top_k.
"""

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers import (
    Expert,
    MoEBlock,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from keras_moe.layers.argument_names import check_dtype
from keras_moe.models.block_arguments import check_block_names, checked

POSITIONS = ("rotary", "learned")


class Blocks:
    """What the transformer blocks of a model have in common.

    Args:
        num_layers: blocks; of an encoder-decoder model, in each of the two.
        hidden_dim: D, the width; `num_heads` divides it.
        num_heads: heads of each attention.
        intermediate_dim: F, the inner width of an expert.
        num_experts: E; None builds the dense twin of equal active FLOPs,
            where a network of the width that a token uses, `K * F` and
            `shared_expert_dim`, takes the place of every MoE block.
        top_k: K, experts of a token.
        moe_every: every n-th block is MoE, the last of each n; the others are
            dense, of the dense twin's width.
        num_key_value_heads: None, or fewer key heads (GQA); see
            `TransformerDecoderBlock`.
        dropout: rate on the output of each part of a block.
        activation, gated: of the experts; see `Expert`.
        capacity_factor: of the MoE blocks in training; None drops nothing.
        shared_expert_dim: width of one more expert that sees every token.
        router: a configured router, of which each block gets a copy with
            weights of its own; None is `Router(num_experts, top_k)`. It
            brings its own `top_k`. One that routes by ids gets the token ids.
        load_balancing_weight: of the MoE blocks; None is the router's own.
        positions: `"rotary"` in the attention, or `"learned"`, added to the
            embeddings.
        seed: int, for dropout, jitter and the like; the weights follow
            `keras.utils.set_random_seed`.
        dtype: dtype policy of every layer.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        num_experts: int | None,
        top_k: int = 2,
        moe_every: int = 1,
        num_key_value_heads: int | None = None,
        dropout: float = 0.0,
        activation="gelu",
        gated: bool = False,
        capacity_factor: float | None = None,
        shared_expert_dim: int | None = None,
        router=None,
        load_balancing_weight: float | None = None,
        positions: str = "rotary",
        seed: int | None = None,
        dtype=None,
    ):
        given = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "dtype")
        }
        self.arguments = arguments = checked(given)
        self.positions = checks.check_choice("positions", positions, POSITIONS)
        self.num_layers = arguments["num_layers"]
        self.hidden_dim = arguments["hidden_dim"]
        self.num_experts = arguments["num_experts"]
        self.moe_every = check_moe_every(moe_every, self.num_layers)
        self.router = router
        self.seed = arguments["seed"]
        self.dtype = check_dtype(dtype)
        transformer_checks.check_width(
            (None, None, hidden_dim), num_heads, positions == "rotary"
        )
        self._style = {"activation": activation, "gated": gated}
        self._moe_options: dict = {
            "intermediate_dim": intermediate_dim,
            "top_k": top_k,
            "capacity_factor": capacity_factor,
            "shared_expert_dim": shared_expert_dim,
            "load_balancing_weight": load_balancing_weight,
        }
        own_top_k = top_k if router is None else router.top_k
        self.dense_dim = round(own_top_k * intermediate_dim)
        self.dense_dim += shared_expert_dim or 0
        self._block_options = {
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "rotary": positions == "rotary",
            "dropout": dropout,
            "dtype": self.dtype,
        }

    def encoder(self, prefix: str = "block") -> list[TransformerEncoderBlock]:
        """Returns new encoder blocks."""
        return [
            TransformerEncoderBlock(
                moe=self.feed_forward(number),
                name=f"{prefix}_{number}",
                **self._block_options,
            )
            for number in range(1, self.num_layers + 1)
        ]

    def decoder(
        self, prefix: str = "block", cross_attention: bool = False
    ) -> list[TransformerDecoderBlock]:
        """Returns new decoder blocks."""
        return [
            TransformerDecoderBlock(
                moe=self.feed_forward(number),
                name=f"{prefix}_{number}",
                cross_attention=cross_attention,
                **self._block_options,
            )
            for number in range(1, self.num_layers + 1)
        ]

    def feed_forward(self, number: int):
        """Returns the feed-forward part of block 1 ... `num_layers`."""
        common = {
            "seed": None if self.seed is None else self.seed + number,
            "dtype": self.dtype,
            **self._style,
        }
        if self.num_experts is None or number % self.moe_every:
            return Expert(self.dense_dim, name="dense", **common)
        return MoEBlock(
            self.num_experts,
            router=self._copy_of_router(number),
            name="moe",
            **self._moe_options,
            **common,
        )

    def _copy_of_router(self, number):
        if self.router is None:
            return None
        config = self.router.get_config()
        if config["seed"] is not None:
            config["seed"] += number
        return type(self.router).from_config(config)


def blocks_of(model, dtype, arguments: dict) -> Blocks:
    """Return the `Blocks` of a model's remaining arguments.

    Args:
        model: Whose constructor has collected `arguments`.
        dtype: Dtype policy of every layer.
        arguments: By name.

    Raises:
        ValueError: If there is an argument that `Blocks` does not have.
    """
    check_block_names(model, arguments, Blocks)
    return Blocks(dtype=dtype, **arguments)


def router_inputs_of(block, token_ids):
    """Returns the ids for a block whose router takes any, else None."""
    router = getattr(block.moe, "router", None)
    use = getattr(router, "router_inputs_use", "none")
    return None if use == "none" else token_ids


def check_moe_every(moe_every: int, num_layers: int) -> int:
    """Returns `moe_every` where it is in 1 ... `num_layers`."""
    moe_every = checks.check_positive_int("moe_every", moe_every)
    if moe_every <= num_layers:
        return moe_every
    raise ValueError(
        "`moe_every` must be at most `num_layers`, or no block would be MoE. "
        f"Received: moe_every={moe_every}, num_layers={num_layers}. For the "
        "dense twin pass num_experts=None."
    )
