"""Base class of encoder and decoder blocks: norms, dropout, feed-forward part.

B batch, S sequence length, D hidden_dim.
"""

import inspect
from typing import Any, Self

import keras

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers import quantization, sharing
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.types import Assignment, Shape, Tensor


class PreNormBlock(NamedArguments, MoELayer):
    """Base class of transformer blocks; a subclass adds `build_attention`.

    Args:
        num_heads: Int. Heads of the attention, of width `D // num_heads`.
        moe: Feed-forward part, a layer from `(B, S, D)` to `(B, S, D)`: a
            `MoEBlock`, or `Expert(F)` for the dense twin. Several blocks may
            share it.
        dropout: Float, 0 or above and below 1. Rate on the output of each
            part, only in training. 0 by default.
        epsilon: Float. Argument of the layer normalizations. 1e-6 by default.
        num_key_value_heads: Int, a divisor of `num_heads`. `None` (the
            default) is one per head.
        rotary: Bool. Whether the attention has rotary positions. False by
            default.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    arguments: tuple[str, ...] = (
        "num_heads",
        "moe",
        "dropout",
        "epsilon",
        "num_key_value_heads",
        "rotary",
    )

    def __init__(
        self,
        num_heads: int,
        moe: keras.layers.Layer,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.check_positive_int("num_heads", num_heads)
        self.moe = transformer_checks.check_moe(moe)
        sharing.own(self, moe)
        parameters = inspect.signature(moe.call).parameters
        self._moe_takes_mask = "mask" in parameters
        self.dropout = checks.check_rate("dropout", dropout)
        self.epsilon = checks.check_above("epsilon", epsilon, 0, 1)
        self.num_key_value_heads = transformer_checks.check_num_key_value_heads(
            num_key_value_heads, num_heads
        )
        self.rotary = checks.check_bool("rotary", rotary)

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(B, S, D)`."""
        transformer_checks.check_width(input_shape, self.num_heads, self.rotary)
        self.attention_norm = self.norm("attention_norm", input_shape)
        self.build_attention(input_shape)
        self.moe_norm = self.norm("moe_norm", input_shape)
        self.drop = keras.layers.Dropout(
            self.dropout, name="drop", dtype=self.dtype_policy
        )
        if not self.moe.built:
            self.moe.build(input_shape)
        transformer_checks.check_moe_shape(self, input_shape)
        quantization.restore_configs(self)

    def build_attention(self, input_shape: Shape) -> None:
        """Create the attention; a subclass implements it."""
        raise NotImplementedError

    def norm(
        self, name: str, input_shape: Shape
    ) -> keras.layers.LayerNormalization:
        """Return a built layer normalization."""
        layer = keras.layers.LayerNormalization(
            epsilon=self.epsilon, name=name, dtype=self.dtype_policy
        )
        layer.build(input_shape)
        return layer

    def feed_forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        training: bool | None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
    ) -> tuple[Tensor, Assignment | None]:
        """Return `x + moe(norm(x))`, and the assignment or None."""
        options: dict[str, Any] = {}
        if self._moe_takes_mask:
            options["mask"] = mask
        given = {"router_inputs": router_inputs, "replay": replay}
        options |= {n: v for n, v in given.items() if v is not None}
        if return_assignment:
            options["return_assignment"] = True
        outputs = self.moe(self.moe_norm(x), training=training, **options)
        assignment = None
        if return_assignment:
            outputs, assignment = outputs
        return x + self.drop(outputs, training=training), assignment

    def moe_assignment_spec(
        self,
        inputs: Tensor,
        router_inputs: Tensor | None,
        return_assignment: bool,
    ) -> Any:
        """Return the symbolic assignment, or None without `return_assignment`.

        Raises:
            ValueError: If `moe` needs router inputs and there are none.
        """
        if not (isinstance(self.moe, Mixture) or return_assignment):
            return None
        outputs = self.moe.compute_output_spec(
            inputs,
            router_inputs=router_inputs,
            return_assignment=return_assignment,
        )
        return outputs[1] if return_assignment else None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Return the mask unchanged."""
        return mask

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.arguments
        }
        own["moe"] = sharing.serialize_part(self.moe, self)
        own["dtype"] = quantization.saved_dtype(self)
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes."""
        block: Self = super().from_config(
            sharing.deserialize_parts(config, "moe")
        )
        return block
