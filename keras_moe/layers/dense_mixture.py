"""Base class of mixtures that run all experts on all tokens.

D hidden_dim, F intermediate_dim, E experts, H output_dim.
"""

import zlib
from typing import Any, Self

import keras

from keras_moe import checks
from keras_moe.checks import expert_checks
from keras_moe.layers import quantization, sharing
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.expert import Expert
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.types import Activation, Shape

_LENT = ("a list of Expert layers", "Leave it out: only configs have it.")


class DenseMixture(NamedArguments, MoELayer):
    """Base class of mixtures that run all experts; builds the experts.

    A subclass lists its own arguments in `arguments`; `get_config` saves the
    attributes of these names.

    Args:
        intermediate_dim: Int, F. Inner width of each expert.
        output_dim: Int, H. Width of the outputs. `None` (the default) is the
            width of the inputs.
        activation, gated, use_bias, dropout, kernel_initializer,
        bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: Arguments of `Expert`.
        seed: Int. Seed of the dropout. `None` (the default) draws one.
        lent_banks: List of `Expert` layers that other layers hold, too. Each
            replaces the bank of its name. Only saved configs have it.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    style: tuple[str, ...] = tuple(expert_checks.STYLE)
    arguments: tuple[str, ...] = (*style, "seed")
    hidden_dim: int

    def __init__(
        self,
        intermediate_dim: int,
        output_dim: int | None = None,
        activation: str | Activation | None = "relu",
        gated: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer: str | keras.initializers.Initializer = (
            "glorot_uniform"
        ),
        bias_initializer: str | keras.initializers.Initializer = "zeros",
        kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
        bias_regularizer: str | keras.regularizers.Regularizer | None = None,
        kernel_constraint: str | keras.constraints.Constraint | None = None,
        bias_constraint: str | keras.constraints.Constraint | None = None,
        seed: int | None = None,
        lent_banks: list[Expert] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self._lent = {
            checks.check_is_a("lent_banks", bank, Expert, *_LENT).name: bank
            for bank in checks.check_list(
                "lent_banks", [] if lent_banks is None else lent_banks, "banks"
            )
        }
        self._banks: list[Expert] = []
        expert_checks.set_style(
            self,
            intermediate_dim=intermediate_dim,
            output_dim=output_dim,
            activation=activation,
            gated=gated,
            use_bias=use_bias,
            dropout=dropout,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
        )
        self.seed = checks.check_seed(seed)

    def bank(self, name: str, num_experts: int) -> Expert:
        """Return new experts with the layer's arguments, initialized by name.

        Args:
            name: Str. Name of the bank, from which its seeds are derived.
            num_experts: Int. Number of experts of the bank.
        """
        bank = self._lent.pop(name, None) or Expert(
            num_experts=num_experts,
            name=name,
            dtype=self.dtype_policy,
            **self.style_of(name),
        )
        sharing.own(self, bank)
        self._banks.append(bank)
        return bank

    def build_banks(self) -> None:
        """Create the weights of the experts, for tokens of `hidden_dim`."""
        for bank in self._banks:
            if not bank.built:
                bank.build((None, self.hidden_dim))

    def style_of(self, name: str) -> dict[str, Any]:
        """Return the arguments of a part, with seeds derived from its name."""
        style = {argument: getattr(self, argument) for argument in self.style}
        for argument in ("kernel_initializer", "bias_initializer"):
            style[argument] = reseeded(style[argument], name, 0)
        return style | {"seed": own_seed(self.seed, name)}

    def output_shape_of(self, input_shape: Shape) -> Shape:
        """Return `(..., H)` of inputs `(..., D)`."""
        return (*input_shape[:-1], self.output_dim or input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.arguments
        }
        own["activation"] = keras.activations.serialize(self.activation)
        own["dtype"] = quantization.saved_dtype(self)
        lent = [x for x in self._banks if sharing.was_shared(x)]
        if lent:
            own["lent_banks"] = [sharing.serialize_part(x, self) for x in lent]
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the layer that `get_config` describes."""
        layer: Self = super().from_config(
            sharing.deserialize_parts(config, "lent_banks")
        )
        return layer


def own_seed(seed: int | None, name: str) -> int | None:
    """Return a seed derived from `name`, so that two banks draw differently."""
    return None if seed is None else (seed + zlib.crc32(name.encode())) % 2**31
