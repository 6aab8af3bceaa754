"""The blocks that a model is built from, MoE or dense.

F intermediate_dim, E experts, K top_k.
"""

import inspect
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers import (
    BaseRouter,
    Expert,
    MoEBlock,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from keras_moe.layers.argument_names import check_dtype
from keras_moe.models.block_arguments import checked
from keras_moe.types import Activation, Tensor

POSITIONS = ("rotary", "learned")


class Blocks:
    """Build the transformer blocks of a model from one set of arguments.

    Args:
        num_layers: Positive int. Number of transformer blocks. An
            encoder-decoder model has this number of each kind.
        hidden_dim: Positive int. D, the width of the model, a multiple of
            `num_heads`.
        num_heads: Positive int. Number of heads of each attention layer.
        intermediate_dim: Positive int. F, the inner width of each expert.
        num_experts: Positive int or None. E, the number of experts of each MoE
            block. `None` builds the dense twin of equal active FLOPs: a dense
            network of width `K * F + shared_expert_dim`, the width that a
            token uses, takes the place of each MoE block.
        top_k: Positive int. K, the number of experts per token. Defaults to 2.
            Ignored if `router` is passed, which has its own.
        moe_every: int in 1 ... `num_layers`. Every n-th block is an MoE block
            and the others are dense, with the dense twin's width. Defaults to
            1: all are MoE blocks.
        num_key_value_heads: Divisor of `num_heads`, or None. Number of heads of
            keys and values (grouped-query attention). `None` (the default)
            means `num_heads`.
        dropout: float in 0 <= rate < 1. Dropout rate of the output of each part
            of a block. Defaults to 0.
        activation: str, function, or None. Activation of the experts. Defaults
            to `"gelu"`. `None` means a linear expert.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float above 0, or None. Limits the tokens per expert
            in training. `None` (the default) never drops tokens.
        shared_expert_dim: Positive int or None. Width of one more expert that
            every token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
            A router that routes by ids gets the token ids.
        load_balancing_weight: float of 0 or above, learning rate schedule, or
            None. Weight of the load-balancing loss. `None` (the default) means
            the router's default.
        positions: str. `"rotary"` (the default) rotates queries and keys;
            `"learned"` adds a learned vector to each embedding.
        seed: int or None. Seed of dropout, jitter, and other random draws in
            training. `None` (the default) draws one. The initial weights follow
            `keras.utils.set_random_seed`.
        dtype: dtype policy of every layer, or None. `None` (the default) means
            Keras's global policy.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.
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
        activation: str | Activation | None = "gelu",
        gated: bool = False,
        capacity_factor: float | None = None,
        shared_expert_dim: int | None = None,
        router: BaseRouter | None = None,
        load_balancing_weight: float | LearningRateSchedule | None = None,
        positions: str = "rotary",
        seed: int | None = None,
        dtype: Any = None,
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
        self._style: dict[str, Any] = {
            "activation": activation,
            "gated": gated,
        }
        self._moe_options: dict[str, Any] = {
            "intermediate_dim": intermediate_dim,
            "top_k": top_k,
            "capacity_factor": capacity_factor,
            "shared_expert_dim": shared_expert_dim,
            "load_balancing_weight": load_balancing_weight,
        }
        own_top_k = top_k if router is None else router.top_k
        self.dense_dim = round(own_top_k * intermediate_dim)
        self.dense_dim += shared_expert_dim or 0
        self._block_options: dict[str, Any] = {
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "rotary": positions == "rotary",
            "dropout": dropout,
            "dtype": self.dtype,
        }

    @classmethod
    def from_arguments(cls, arguments: dict[str, Any]) -> "Blocks":
        """Return the `Blocks` of a model whose arguments include its own.

        Args:
            arguments: Dict from names to values. Names that `Blocks` does not
                have are ignored.
        """
        names = inspect.signature(cls).parameters
        return cls(**{name: arguments[name] for name in names})

    def encoder(self, prefix: str = "block") -> list[TransformerEncoderBlock]:
        """Return new encoder blocks."""
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
        """Return new decoder blocks."""
        return [
            TransformerDecoderBlock(
                moe=self.feed_forward(number),
                name=f"{prefix}_{number}",
                cross_attention=cross_attention,
                **self._block_options,
            )
            for number in range(1, self.num_layers + 1)
        ]

    def feed_forward(self, number: int) -> Expert | MoEBlock:
        """Return the feed-forward part of block 1 ... `num_layers`."""
        common: dict[str, Any] = {
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

    def _copy_of_router(self, number: int) -> BaseRouter | None:
        if self.router is None:
            return None
        config = self.router.get_config()
        if config["seed"] is not None:
            config["seed"] += number
        copy: BaseRouter = type(self.router).from_config(config)
        return copy


def router_inputs_of(
    block: keras.layers.Layer, token_ids: Tensor
) -> Tensor | None:
    """Return the ids if the router of a block takes ids, else None."""
    router = getattr(block.moe, "router", None)
    use = getattr(router, "router_inputs_use", "none")
    return None if use == "none" else token_ids


def check_moe_every(moe_every: int, num_layers: int) -> int:
    """Return `moe_every` if it is in 1 ... `num_layers`."""
    moe_every = checks.check_positive_int("moe_every", moe_every)
    if moe_every <= num_layers:
        return moe_every
    raise ValueError(
        "`moe_every` must be at most `num_layers`, or no block would be MoE. "
        f"Received: moe_every={moe_every}, num_layers={num_layers}. For the "
        "dense twin pass num_experts=None."
    )
