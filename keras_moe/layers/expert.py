"""Bank of feed-forward experts with stacked weights.

D hidden_dim, F intermediate_dim, H output_dim, E experts, P routed pairs, R
rows per expert if all experts have equally many.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.checks import expert_checks
from keras_moe.layers import (
    quantization,
    quantized_bank,
    upcycling,
)
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.constraints import per_expert
from keras_moe.layers.initializers import PerExpert
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.seeds import SeedGenerator
from keras_moe.types import Activation, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Expert(NamedArguments, MoELayer):
    """Computes E feed-forward networks of two or three matrices each.

    Without a gate, `down(activation(up(x)))` (Vaswani et al. 2017, eq. 2). With
    a gate, `down(activation(gate(x)) * up(x))` (Shazeer 2020, eq. 5-6; SwiGLU
    with `activation="silu"`), or `down(activation(gate(x), up(x)))` if the
    activation is a `GatedUnit` such as `ClippedSwiGLU`. With `num_experts=1`,
    it is a dense feed-forward network for inputs of any rank.

    Args:
        intermediate_dim: Int, F. Inner width. 4 * D in a dense transformer;
            divide by `top_k` for the cost of a dense layer.
        num_experts: Int, E. 1 by default.
        hidden_dim: Int, D. `None` (the default) takes it from the inputs.
        activation: Name, function, or `GatedUnit`. `"relu"` by default.
            `ClippedSwiGLU()` is the activation of GPT-OSS.
        gated: Bool. Whether there is a gate matrix. False by default.
        use_bias: Bool. Whether each matrix has a bias. True by default.
        dropout: Float, 0 or above and below 1. Rate on the hidden units, only
            in training. 0 by default.
        kernel_initializer, bias_initializer: Keras initializers, or names,
            applied to each expert separately.
        kernel_regularizer, bias_regularizer: Keras regularizers, or names,
            applied to each stacked weight. `None` by default.
        kernel_constraint, bias_constraint: Keras constraints, or names, applied
            to each expert's slice after a training step, with the axes of the
            weights of `Dense`: `MaxNorm(2, axis=0)` limits the norm of each
            unit's incoming weights. `quantize` removes them. `None` by
            default.
        remat: Bool. Whether training recomputes the hidden units in the
            backward pass instead of storing `(P, F)` of them: about a sixth
            more computation, and half the memory of the layer's activations.
            Excludes `dropout`. False by default.
        output_dim: Int, H. Width of the outputs. `None` (the default) is D,
            which a `MoEBlock` requires.
        seed: Int. Seed of the dropout. `None` (the default) draws one.
        quantization_config: `QuantizationConfig` that was passed to
            `quantize`. Only saved configs have it.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `up_kernel` `(E, D, F)`, `up_bias` `(E, F)`, `down_kernel`
    `(E, F, H)`, `down_bias` `(E, H)`; with a gate also `gate_kernel`
    `(E, D, F)` and `gate_bias` `(E, F)`. A quantized layer has integer kernels
    with `up_scale`, `down_scale`, and `gate_scale`; see
    `kernels.QuantizedKernel`.

    Call arguments:
        x: Float tensor of shape `(P, D)` or `(P, ..., D)`, rows sorted by
            expert; if E is 1, any `(..., D)`.
        group_sizes: Int32 tensor of shape `(E,)`, rows per expert. Optional if
            E is 1. The outputs of rows after the last group are zero.
        training: Bool. Dropout acts only in training.
        mask, most_rows: Call arguments of `ExpertLayers`, which blocks call in
            the same way. Ignored here.

    Attributes:
        shard: The `kernels.ExpertShard` that this process holds, or None.

    Returns:
        Tensor like `x`, of width H, in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, if the activation is a
            `GatedUnit` and `gated` is False, if `x` has integers, a rank below
            2, or another width, or if `group_sizes` are missing and E is above
            1.

    Example:

    ```python
    experts = keras_moe.Expert(intermediate_dim=32, num_experts=4)
    rows = keras.random.normal((6, 16))  # sorted by expert
    group_sizes = np.array([3, 0, 1, 2], "int32")
    outputs = experts(rows, group_sizes=group_sizes)
    ```
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_experts: int = 1,
        hidden_dim: int | None = None,
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
        remat: bool = False,
        output_dim: int | None = None,
        seed: int | None = None,
        quantization_config: keras.quantizers.QuantizationConfig | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
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
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.hidden_dim = checks.check_optional_int("hidden_dim", hidden_dim)
        self.remat = checks.check_remat(remat, self.dropout)
        self.seed = checks.check_seed(seed)
        self.seed_generator = SeedGenerator(self.seed)
        self.quantization_config = expert_checks.check_quantization_config(
            quantization_config
        )
        self.shard: kernels.ExpertShard | None = None

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        width = checks.check_input_shape(input_shape)
        expert_checks.check_width(self.hidden_dim, input_shape)
        self.hidden_dim = width
        if self.quantization_config is None:
            self.quantization_config = quantization.given_config(self)
        self.up_kernel, self.up_bias = self._add_linear("up", width, None)
        self.gate_kernel = self.gate_bias = None
        if self.gated:
            self.gate_kernel, self.gate_bias = self._add_linear(
                "gate", width, None
            )
        self.down_kernel, self.down_bias = self._add_linear(
            "down", None, self.output_dim or width
        )

    def _add_linear(
        self, name: str, fan_in: int | None, fan_out: int | None
    ) -> tuple[keras.Variable, keras.Variable | None]:
        """Add a stacked kernel and bias; a width of None is F."""
        inputs = fan_in or self.intermediate_dim
        outputs = fan_out or self.intermediate_dim
        kernel = self._add_kernel(name, (self.num_experts, inputs, outputs))
        if not self.use_bias:
            return kernel, None
        bias = self.add_weight(
            name=f"{name}_bias",
            shape=(self.num_experts, outputs),
            initializer=PerExpert(self.bias_initializer, f"{name}_bias"),
            regularizer=self.bias_regularizer,
            constraint=per_expert(self.bias_constraint),
        )
        return kernel, bias

    def _add_kernel(
        self, name: str, shape: tuple[int, int, int]
    ) -> keras.Variable:
        if self.quantization_mode is not None:
            return quantized_bank.build_kernel(self, name, shape)
        weight = self.add_weight(
            name=f"{name}_kernel",
            shape=shape,
            initializer=PerExpert(self.kernel_initializer, f"{name}_kernel"),
            regularizer=self.kernel_regularizer,
            constraint=per_expert(self.kernel_constraint),
        )
        kernels.settle(weight)
        return weight

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: keras.quantizers.QuantizationConfig | None = None,
    ) -> None:
        """Quantize the kernels of each expert separately, and no biases.

        `model.quantize` calls this function. Integer kernels cannot be
        trained; inputs and biases still have gradients.

        Args:
            mode: `"int8"`, or `"int4"` with two values per byte.
            type_check: Bool. Whether to reject subclasses. True by default.
            config: `keras.quantizers.Int8QuantizationConfig` or
                `Int4QuantizationConfig`. Its `activation_quantizer` determines
                whether the rows are rounded, too. `None` (the default) is
                Keras's default for the mode.

        Raises:
            ValueError: If the mode is another one, or if stacked kernels
                cannot be quantized with the quantizers of `config`.
            NotImplementedError: If the layer is of a subclass and `type_check`
                is True.
        """
        if type_check and type(self) is not Expert:
            raise NotImplementedError(
                f"`quantize` of {type(self).__name__} must be implemented: it "
                "is a subclass of Expert. Received: type_check=True."
            )
        quantized_bank.quantize(self, mode, config)

    def quantized_call(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run quantized experts: `call` reads their weights."""
        return self.call(*args, **kwargs)

    def call(
        self,
        x: Tensor,
        group_sizes: Tensor | None = None,
        training: bool | None = None,
        mask: Tensor | None = None,
        most_rows: int | Tensor | None = None,
    ) -> Tensor:
        """Run each row through its expert; see the class."""
        checks.check_floating(x)
        checks.check_built_width(x, self.hidden_dim)
        if group_sizes is None:
            return self._run_only_expert(x, self.hidden_dropout(training))
        expert_checks.check_group_sizes(group_sizes, self.num_experts)
        dropout = self.hidden_dropout(training)
        return self.run(self.ffn_weights(), x, group_sizes, dropout)

    def run(
        self,
        weights: kernels.FFNWeights,
        x: Tensor,
        group_sizes: Tensor,
        dropout: Activation | None = None,
    ) -> Tensor:
        """Run each row through its expert, with the given weights.

        Args:
            weights: `kernels.FFNWeights` of all or some experts, or of a part
                of F, in the form of `ffn_weights()`.
            x: Float tensor of shape `(P, ..., D)`, rows sorted by expert.
            group_sizes: Int32 tensor, rows per expert of `weights`.
            dropout: Function of the hidden rows, or None.
        """
        rows = x
        if len(x.shape) > 2:
            rows = ops.reshape(x, (-1, self.hidden_dim))
            group_sizes = group_sizes * math.prod(ops.shape(x)[1:-1])
        rows = kernels.grouped_ffn(
            rows, weights, group_sizes, self.activation, dropout, self.remat
        )
        if len(x.shape) == 2:
            return rows
        return ops.reshape(rows, (*ops.shape(x)[:-1], rows.shape[-1]))

    def hidden_dropout(
        self,
        training: bool | None,
        seed: keras.random.SeedGenerator | None = None,
    ) -> Activation | None:
        """Return the dropout function of the hidden units, or None.

        Args:
            training: Bool.
            seed: A `keras.random.SeedGenerator`. `None` (the default) is the
                layer's own.
        """
        if not (training and self.dropout):
            return None
        seed = self.seed_generator if seed is None else seed
        return partial(keras.random.dropout, rate=self.dropout, seed=seed)

    def _run_only_expert(self, x: Tensor, dropout: Activation | None) -> Tensor:
        expert_checks.check_only_expert(self.num_experts)
        weights = self.ffn_weights()
        if not self.remat and self.quantization_mode is None:
            weights = kernels.FFNWeights(
                *(None if w is None else ops.squeeze(w, 0) for w in weights)
            )
            return kernels.ffn(x, weights, self.activation, dropout=dropout)
        rows = ops.reshape(x, (-1, self.hidden_dim))
        everything = ops.reshape(ops.shape(rows)[0], (1,))
        rows = self.run(weights, rows, everything, dropout)
        return ops.reshape(rows, (*ops.shape(x)[:-1], rows.shape[-1]))

    def run_all(self, rows: Tensor, training: bool | None = None) -> Tensor:
        """Run all experts, each on equally many rows, as one batched product.

        Layers that use all experts call this function inside their own `call`.

        Args:
            rows: Float tensor of shape `(E, R, D)`, or `(1, R, D)` for the
                same rows in all experts.
            training: Bool. Dropout acts only in training.

        Returns:
            Tensor of shape `(E, R, H)`.
        """
        return kernels.stacked_ffn(
            rows,
            self.ffn_weights(),
            self.activation,
            self.hidden_dropout(training),
        )

    def ffn_weights(self) -> kernels.FFNWeights:
        """Return the variables of the bank as `kernels.FFNWeights`."""

        def kernel(name: str) -> Any:
            if self.quantization_mode is not None:
                return quantized_bank.kernel_of(self, name)
            return getattr(self, f"{name}_kernel")

        return kernels.FFNWeights(
            up_kernel=kernel("up"),
            down_kernel=kernel("down"),
            up_bias=self.up_bias,
            down_bias=self.down_bias,
            gate_kernel=kernel("gate"),
            gate_bias=self.gate_bias,
        )

    def save_own_variables(self, store: Any) -> None:
        """Save the weights of all experts.

        Raises:
            RuntimeError: If this process holds only some of them.
        """
        expert_checks.check_whole(self)
        super().save_own_variables(store)

    def initialize_from(
        self,
        source: "Expert | Sequence[keras.layers.Dense]",
        noise_std: float = 0.0,
        seed: int | None = None,
    ) -> None:
        """Make each expert a copy of one trained network, plus noise.

        Args:
            source: A built `Expert(num_experts=1)`, or built `Dense` layers
                `(up, down)` or `(up, down, gate)`.
            noise_std: Float, 0 or above. Standard deviation of the noise, in
                standard deviations of each weight. 0 (the default) adds none;
                0.01 is a common start.
            seed: Int. Seed of the noise. `None` (the default) takes one that
                `keras.utils.set_random_seed` determines.

        Raises:
            ValueError: If the source is not built, or if its shapes, biases,
                gate, or activation differ from those of the experts.
        """
        quantization.check_floats(self)
        upcycling.start_from(self, source, noise_std, seed)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs: `(..., H)`."""
        return (*input_shape[:-1], self.output_dim or input_shape[-1])

    def compute_output_spec(
        self,
        x: Tensor,
        group_sizes: Tensor | None = None,
        training: bool | None = None,
        mask: Tensor | None = None,
        most_rows: int | Tensor | None = None,
    ) -> keras.KerasTensor:
        """Return the symbolic output of symbolic inputs."""
        checks.check_floating(x)
        shape = self.compute_output_shape(x.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in _ARGUMENTS
        }
        own["activation"] = keras.activations.serialize(self.activation)
        own["dtype"] = quantization.saved_dtype(self)
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes."""
        given = config.get("quantization_config")
        given = keras.saving.deserialize_keras_object(given)
        bank: Self = super().from_config(
            {**config, "quantization_config": given}
        )
        return bank


# The attributes that `get_config` saves.
_ARGUMENTS = (
    *expert_checks.STYLE,
    "num_experts",
    "hidden_dim",
    "remat",
    "seed",
    "quantization_config",
)
