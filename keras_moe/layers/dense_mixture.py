"""What layers that run all their experts on everything share.

D hidden_dim, F intermediate_dim, E experts, H output_dim.
"""

import zlib

import keras

from keras_moe import checks
from keras_moe.checks import expert_checks
from keras_moe.layers import quantization, sharing
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.expert import Expert
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.types import Shape

_LENT = ("a list of Expert layers", "Leave it out: configs alone have it.")


class DenseMixture(NamedArguments, MoELayer):
    """Base of mixtures that choose nobody; builds their banks of experts.

    A subclass names its own arguments in `arguments`: attributes of the same
    names are what `get_config` saves.

    Args:
        intermediate_dim: F, the inner width of each expert.
        output_dim: H, width of the outputs; None is that of the inputs.
        activation, gated, use_bias, dropout, kernel_initializer,
        bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint: of the experts; see `Expert`.
        seed: int, for the dropout.
        lent_banks: list of `Expert`s that other layers hold, too, each in the
            place of the bank of its name. Configs have it.
        **kwargs: of `keras.layers.Layer`.
    """

    style: tuple[str, ...] = (
        "intermediate_dim",
        "output_dim",
        "activation",
        "gated",
        "use_bias",
        "dropout",
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "bias_regularizer",
        "kernel_constraint",
        "bias_constraint",
    )
    arguments: tuple[str, ...] = (*style, "seed")
    hidden_dim: int

    def __init__(
        self,
        intermediate_dim: int,
        output_dim: int | None = None,
        activation="relu",
        gated: bool = False,
        use_bias: bool = True,
        dropout: float = 0.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        seed: int | None = None,
        lent_banks: list[Expert] | None = None,
        **kwargs,
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
        """Returns experts in the layer's style, with a start of their own."""
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
        """Creates the weights of the experts, for tokens of `hidden_dim`."""
        for bank in self._banks:
            if not bank.built:
                bank.build((None, self.hidden_dim))

    def style_of(self, name: str) -> dict:
        """Returns the style for a part, with seeds of its own."""
        style = {argument: getattr(self, argument) for argument in self.style}
        for argument in ("kernel_initializer", "bias_initializer"):
            style[argument] = reseeded(style[argument], name, 0)
        return style | {"seed": own_seed(self.seed, name)}

    def output_shape_of(self, input_shape: Shape) -> Shape:
        """Returns `(..., H)` of inputs `(..., D)`."""
        return (*input_shape[:-1], self.output_dim or input_shape[-1])

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
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
    def from_config(cls, config: dict):
        """Returns the layer that `get_config` describes."""
        return super().from_config(
            sharing.deserialize_parts(config, "lent_banks")
        )


def own_seed(seed: int | None, name: str) -> int | None:
    """Returns a seed for `name`, so that two banks draw differently."""
    return None if seed is None else (seed + zlib.crc32(name.encode())) % 2**31
