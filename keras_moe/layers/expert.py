"""A bank of feed-forward experts with stacked weights.

D hidden_dim, F intermediate_dim, H output_dim, E experts, P routed pairs, R
rows of each expert where all have as many.
"""

import math
from functools import partial

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
    """E feed-forward networks of two or three matrices each.

    Ungated: `down(activation(up(x)))` (Vaswani et al. 2017, eq. 2). Gated:
    `down(activation(gate(x)) * up(x))` (Shazeer 2020, eq. 5-6; SwiGLU with
    `activation="silu"`). With `num_experts=1` it is a dense feed-forward
    network that takes inputs of any rank.

    Args:
        intermediate_dim: F, the inner width. 4 * D in a dense transformer;
            divide by `top_k` for the cost of a dense layer.
        num_experts: E.
        hidden_dim: D; None takes it from the inputs.
        activation: name or function.
        gated: whether there is a gate matrix.
        use_bias: whether each matrix has a bias.
        dropout: rate on the hidden units, in training only.
        kernel_initializer, bias_initializer: Keras initializers, applied to
            each expert as if it stood alone.
        kernel_regularizer, bias_regularizer: Keras regularizers, applied to
            each stacked weight.
        kernel_constraint, bias_constraint: Keras constraints, applied to each
            expert's slice after a training step, with the axes of a `Dense`
            layer's weight: `MaxNorm(2, axis=0)` limits the norm of each
            unit's incoming weights. They end when the layer is quantized.
        remat: whether training recomputes the hidden units in the backward
            pass instead of keeping `(P, F)` of them: a sixth more work, and
            about half the memory of the layer's activations. Not with
            `dropout`.
        output_dim: H, the width of the outputs; None is D, which a `MoEBlock`
            needs.
        seed: int, for the dropout.
        quantization_config: what `quantize` was given; for a layer that is
            loaded.
        **kwargs: of `keras.layers.Layer`.

    Weights: `up_kernel` `(E, D, F)`, `up_bias` `(E, F)`, `down_kernel`
    `(E, F, H)`, `down_bias` `(E, H)`; gated, also `gate_kernel` `(E, D, F)`
    and `gate_bias` `(E, F)`. Quantised, the kernels are integers beside
    `up_scale`, `down_scale` and `gate_scale`; see `kernels.QuantizedKernel`.

    Call arguments:
        x: float `(P, D)` or `(P, ..., D)`, rows sorted by expert; any
            `(..., D)` where E is 1.
        group_sizes: int32 `(E,)`, rows of each expert; may be left out where
            E is 1. Rows behind the last group come out as zero.
        training: bool; dropout acts only in training.
        mask, most_rows: of `ExpertLayers`, which is called in the same way;
            a feed-forward expert needs neither.

    Attributes:
        shard: None, or the `kernels.ExpertShard` that this process holds.

    Returns:
        A tensor like `x`, of width H, in the compute dtype.

    Raises:
        ValueError: for an argument out of its range, inputs of integers, of
            rank below 2 or of another width, or missing `group_sizes`.

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
        remat: bool = False,
        output_dim: int | None = None,
        seed: int | None = None,
        quantization_config=None,
        **kwargs,
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
        """Creates the weights for inputs `(..., D)`."""
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

    def _add_linear(self, name, fan_in, fan_out):
        """Adds a stacked kernel and bias; None stands for F."""
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

    def _add_kernel(self, name, shape):
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

    def quantize(self, mode=None, type_check=True, config=None) -> None:
        """Quantises the kernels, each expert's by itself; biases stay.

        `model.quantize` calls it. Integers take the place of the floats and
        cannot be trained; the inputs and the biases have gradients still.

        Args:
            mode: `"int8"`, or `"int4"`, two values a byte.
            type_check: whether subclasses are left as they are.
            config: `keras.quantizers.Int8QuantizationConfig` or
                `Int4QuantizationConfig`; its `activation_quantizer` says
                whether rows are rounded, too, as they come.

        Raises:
            ValueError: for another mode, or quantizers that do not suit
                experts.
            NotImplementedError: for a subclass, where `type_check`.
        """
        if type_check and type(self) is not Expert:
            raise NotImplementedError(
                f"`quantize` of {type(self).__name__} must be written: it is a "
                "subclass of Expert. Received: type_check=True."
            )
        quantized_bank.quantize(self, mode, config)

    def quantized_call(self, *args, **kwargs) -> Tensor:
        """Runs quantised experts: `call`, of other weights."""
        return self.call(*args, **kwargs)

    def call(
        self,
        x: Tensor,
        group_sizes: Tensor | None = None,
        training=None,
        mask: Tensor | None = None,
        most_rows: int | Tensor | None = None,
    ) -> Tensor:
        """Runs each row through its expert; see the class."""
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
        """Runs each row through its expert: `call`, as a function of weights.

        Args:
            weights: like `ffn_weights()`, of some experts or of parts of F.
            x: float `(P, ..., D)`, rows sorted by these experts.
            group_sizes: int32, rows of each of them.
            dropout: function of the hidden rows, or None.
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

    def hidden_dropout(self, training, seed=None) -> Activation | None:
        """Returns the dropout of the hidden units, or None without one.

        Args:
            training: bool.
            seed: what draws, as of `keras.random`; None is the layer's own.
        """
        if not (training and self.dropout):
            return None
        seed = self.seed_generator if seed is None else seed
        return partial(keras.random.dropout, rate=self.dropout, seed=seed)

    def _run_only_expert(self, x, dropout):
        weights = self._only_weights()
        if not self.remat and self.quantization_mode is None:
            weights = kernels.FFNWeights(
                *(None if w is None else ops.squeeze(w, 0) for w in weights)
            )
            return kernels.ffn(x, weights, self.activation, dropout=dropout)
        rows = ops.reshape(x, (-1, self.hidden_dim))
        everything = ops.reshape(ops.shape(rows)[0], (1,))
        rows = kernels.grouped_ffn(
            rows, weights, everything, self.activation, dropout, self.remat
        )
        return ops.reshape(rows, (*ops.shape(x)[:-1], rows.shape[-1]))

    def run_all(self, rows: Tensor, training=None) -> Tensor:
        """Runs every expert, each on as many rows: one product of stacks.

        For layers that own a bank and choose nobody; call it inside theirs.

        Args:
            rows: float `(E, R, D)`, or `(1, R, D)`, the same for all.
            training: bool; dropout acts only in training.

        Returns:
            `(E, R, H)`.
        """
        return kernels.stacked_ffn(
            rows,
            self.ffn_weights(),
            self.activation,
            self.hidden_dropout(training),
        )

    def ffn_weights(self) -> kernels.FFNWeights:
        """Returns the variables of the bank, as `kernels` takes them."""

        def kernel(name):
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

    def _only_weights(self):
        """The weights where there is one expert."""
        expert_checks.check_only_expert(self.num_experts)
        return self.ffn_weights()

    def save_own_variables(self, store) -> None:
        """Saves the weights of all experts.

        Raises:
            RuntimeError: where this process holds only some of them.
        """
        expert_checks.check_whole(self)
        super().save_own_variables(store)

    def initialize_from(
        self, source, noise_std: float = 0.0, seed: int | None = None
    ) -> None:
        """Makes every expert a copy of one trained network, plus noise.

        Args:
            source: a built `Expert(num_experts=1)`, or built `Dense` layers
                `(up, down)` or `(up, down, gate)`.
            noise_std: in standard deviations of each weight; 0.01 is a start.
            seed: int, for the noise.

        Raises:
            ValueError: where the source does not fit; see `upcycling.py`.
        """
        quantization.check_floats(self)
        upcycling.start_from(self, source, noise_std, seed)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the outputs: `(..., H)`."""
        return (*input_shape[:-1], self.output_dim or input_shape[-1])

    def compute_output_spec(
        self, x, group_sizes=None, training=None, mask=None, most_rows=None
    ):
        """Returns the symbolic output of symbolic inputs."""
        checks.check_floating(x)
        shape = self.compute_output_shape(x.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        serialize_initializer = keras.initializers.serialize
        serialize_regularizer = keras.regularizers.serialize
        serialize_constraint = keras.constraints.serialize
        return {
            **super().get_config(),
            "dtype": quantization.saved_dtype(self),
            "intermediate_dim": self.intermediate_dim,
            "num_experts": self.num_experts,
            "hidden_dim": self.hidden_dim,
            "activation": keras.activations.serialize(self.activation),
            "gated": self.gated,
            "use_bias": self.use_bias,
            "dropout": self.dropout,
            "kernel_initializer": serialize_initializer(
                self.kernel_initializer
            ),
            "bias_initializer": serialize_initializer(self.bias_initializer),
            "kernel_regularizer": serialize_regularizer(
                self.kernel_regularizer
            ),
            "bias_regularizer": serialize_regularizer(self.bias_regularizer),
            "kernel_constraint": serialize_constraint(self.kernel_constraint),
            "bias_constraint": serialize_constraint(self.bias_constraint),
            "remat": self.remat,
            "output_dim": self.output_dim,
            "seed": self.seed,
            "quantization_config": keras.saving.serialize_keras_object(
                self.quantization_config
            ),
        }

    @classmethod
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        given = config.get("quantization_config")
        given = keras.saving.deserialize_keras_object(given)
        return super().from_config({**config, "quantization_config": given})
