"""Soft mixture of experts: experts compute mixtures of tokens.

B sequences, S tokens per sequence, D hidden_dim, F intermediate_dim, E experts,
H output_dim, Z slots per expert.
"""

import warnings
from typing import Any, Self

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.added_losses import floatx_regularizer
from keras_moe.layers.dense_mixture import DenseMixture
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class SoftMoE(DenseMixture):
    """Computes Z mixtures of tokens per expert and mixes the results per token.

    No token is dropped, and every weight gets a gradient from every token, so
    there is no load to balance. The cost follows the `E * Z` slots per
    sequence, whatever its length: `E * Z = S` costs as much as one expert on
    every token.

    Each token reads the whole sequence, including later tokens: the layer is
    not causal, and not for autoregressive decoders. A sequence is the axis
    before the last. Inputs of rank 2 are one sequence: each row depends on the
    other rows of its batch, and the layer warns once. Use `MoEBlock` for rows
    that are separate examples.

    Args:
        num_experts: Int, E.
        intermediate_dim: Int, F. Inner width of each expert.
        slots_per_expert: Int, Z. 1 (the default) with many experts is best in
            the paper.
        normalize_logits: Bool. Whether tokens and slots are scaled to unit
            length, with a learned scale (section 2.3), which keeps the softmax
            over wide tokens from becoming a discrete choice. True by default.
        **kwargs: Arguments of `Expert`: `output_dim` (H, the width of the
            outputs; `None`, the default, is D), `activation`, `gated`,
            `use_bias`, `dropout`, `kernel_initializer`, `bias_initializer`,
            `kernel_regularizer`, `bias_regularizer`, `kernel_constraint`,
            `bias_constraint`, `seed`; and those of `keras.layers.Layer`.

    Weights: `slot_kernel` `(D, E * Z)`, expert by expert, and `scale` `(1,)`,
    float32, in addition to those of `Expert`.

    Call arguments:
        inputs: Float tensor of shape `(..., S, D)`.
        mask: Bool tensor of shape `(..., S)`, False for padding, which is in
            no slot and has the output zero.
        training: Bool.

    Returns:
        Tensor of shape `(..., S, H)`, in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, if the inputs have
            integers, a rank below 2, or an unknown width, or if the mask does
            not fit.

    Reference: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of
    Experts", eq. 1-3.

    Example:

    ```python
    layer = keras_moe.SoftMoE(num_experts=4, intermediate_dim=32)
    outputs = layer(keras.random.normal((2, 10, 16)))  # 4 slots a sequence
    ```
    """

    causal = False  # a slot mixes all tokens of a sequence
    arguments = (
        "num_experts",
        "slots_per_expert",
        "normalize_logits",
        *DenseMixture.arguments,
    )

    def __init__(
        self,
        num_experts: int,
        intermediate_dim: int,
        slots_per_expert: int = 1,
        normalize_logits: bool = True,
        **kwargs: Any,
    ):
        super().__init__(intermediate_dim, **kwargs)
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.slots_per_expert = checks.check_positive_int(
            "slots_per_expert", slots_per_expert
        )
        self.normalize_logits = checks.check_bool(
            "normalize_logits", normalize_logits
        )
        self.experts = self.bank("experts", num_experts)
        self._has_warned = False

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., S, D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self._warn_of_one_sequence(input_shape)
        own = {"dtype": "float32", "autocast": False}
        self.slot_kernel = self.add_weight(
            name="slot_kernel",
            shape=(self.hidden_dim, self.num_experts * self.slots_per_expert),
            initializer=reseeded(self.kernel_initializer, "slot_kernel", 0),
            regularizer=floatx_regularizer(self.kernel_regularizer),
            **own,
        )
        self.scale = None
        if self.normalize_logits:
            self.scale = self.add_weight(
                name="scale", shape=(1,), initializer="ones", **own
            )
        self.build_banks()

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Mix tokens into slots, run the experts, and mix the results."""
        self._warn_of_one_sequence(inputs.shape)
        tokens, token_mask = flatten_tokens(inputs, mask, self.hidden_dim)
        length = ops.shape(inputs)[-2]
        sequences = ops.reshape(tokens, (-1, length, self.hidden_dim))
        if token_mask is not None:
            token_mask = ops.reshape(token_mask, (-1, length))
        logits = routing.soft_slot_logits(
            ops.cast(sequences, "float32"), self.slot_kernel, self.scale
        )
        dispatch, combine = (
            ops.cast(weights, sequences.dtype)
            for weights in routing.soft_weights(logits, token_mask)
        )
        slots = ops.matmul(ops.transpose(dispatch, (0, 2, 1)), sequences)
        outputs = ops.matmul(combine, self._run_experts(slots, training))
        return ops.reshape(
            outputs, (*ops.shape(inputs)[:-1], outputs.shape[-1])
        )

    def _warn_of_one_sequence(self, shape: Shape) -> None:
        if len(shape) > 2 or self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            "`inputs` of SoftMoE should be (batch, sequence, features). "
            f"Received: shape {tuple(shape)}, which is read as one sequence: "
            "the output of each row depends on the other rows of the batch. "
            "Add an axis for the sequence, or use MoEBlock.",
            stacklevel=2,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes, without a warning."""
        layer: Self = super().from_config(config)
        layer._has_warned = True
        return layer

    def _run_experts(self, slots: Tensor, training: bool | None) -> Tensor:
        """Run each expert on its slots of all sequences, `(B, E * Z, H)`."""
        E, Z, D = self.num_experts, self.slots_per_expert, self.hidden_dim
        rows = ops.transpose(ops.reshape(slots, (-1, E, Z, D)), (1, 0, 2, 3))
        rows = self.experts.run_all(
            ops.reshape(rows, (E, -1, D)), training=training
        )
        H = rows.shape[-1]
        rows = ops.transpose(ops.reshape(rows, (E, -1, Z, H)), (1, 0, 2, 3))
        return ops.reshape(rows, (-1, E * Z, H))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs, `(..., S, H)`."""
        return self.output_shape_of(input_shape)

    def compute_output_spec(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> keras.KerasTensor:
        """Return the symbolic output of symbolic inputs."""
        checks.check_floating(inputs)
        shape = self.output_shape_of(inputs.shape)
        return keras.KerasTensor(shape, self.compute_dtype)
