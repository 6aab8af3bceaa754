"""Mixture-of-experts block: router, dispatch, experts, combine.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, P pairs.
"""

from collections.abc import Sequence
from typing import Any, Self

import keras

from keras_moe import checks, kernels
from keras_moe.checks import block_checks, expert_checks
from keras_moe.dispatch import (
    combine,
    dispatch,
    sort_by_expert,
    split_weights,
)
from keras_moe.kernels import light_ops as ops
from keras_moe.layers import (
    block_parts,
    quantization,
    sharing,
    upcycling,
)
from keras_moe.layers.block_parts import Experts
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_parallel import mix_across, spread_bank
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.null_experts import NullExperts
from keras_moe.layers.routers.base_router import BaseRouter
from keras_moe.layers.scheduled import LossWeight
from keras_moe.layers.tokens import (
    check_level,
    flatten_mask,
    units_of,
    zero_padding,
)
from keras_moe.routing import Assignment
from keras_moe.routing.capacity import only_tokens
from keras_moe.types import Activation, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MoEBlock(Mixture):
    """Sends each token through its best K of E feed-forward experts.

    Replaces `Dense -> activation -> Dense` in any model. The cost follows K,
    not E, because only the chosen experts compute a token.

    Second derivatives are correct on every backend, for instance in a gradient
    penalty. For forward mode (`jax.jvp`, `jax.hessian`), see
    `keras_moe.kernels.use`.

    Args:
        num_experts: Int, E. 8 is a common start; 64 or more with small
            experts. `None` (the default) takes it from `experts`, or else from
            `router`.
        intermediate_dim: Int, F. Inner width of each expert. The width of a
            dense layer divided by `top_k` keeps the cost of the dense layer.
            `None` (the default) if `experts` is given.
        top_k: Int, K. Experts per token, 1 to E. 2 by default. The K weights
            are normalized to sum to one; with K = 1 the weight is the router's
            probability (Fedus et al. 2021, eq. 2), so that the router learns.
        capacity_factor: Float above 0, used only in training. An expert
            computes at most `C = ceil(K * T * capacity_factor / E)` pairs,
            with E the number of experts that are on (see
            `routing.expert_capacity`). Further pairs are dropped: their token
            keeps its other experts, or has the output zero, so that only a
            residual connection passes it on. `None` (the default) never drops
            tokens.
        eval_capacity_factor: Float above 0. Like `capacity_factor`, but
            outside training. `None` (the default) never drops tokens there,
            whatever `capacity_factor` is.
        priority: `"position"` (the default) keeps the earlier tokens,
            `"score"` those with the highest router probability.
        expert_capacity: Int above 0, C. An expert computes at most C pairs of
            each sequence, the axis before the last, in training and outside;
            further pairs are dropped. `switch_transformers` of transformers has
            64. Inputs of rank 2 are one sequence. Excludes the capacity
            factors. `None` (the default) sets no such limit.
        compute_padding: Bool. Whether tokens whose mask is False are computed
            like all others, and excluded only from losses and load statistics.
            They take part in capacity. KerasHub's models and transformers
            compute padding in this way. False by default: padding is excluded
            everywhere.
        weights_on: `"outputs"` (the default) multiplies the output of each
            chosen expert by the router's weight; `"inputs"` its input, as in
            Llama 4 (`llama4` in transformers). Excludes null experts.
        activation, gated, use_bias, dropout, kernel_initializer,
        bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint, remat: Arguments of `Expert`.
        shared_expert_dim: Int. Inner width of one more expert that computes
            every token (DeepSeekMoE, Dai et al. 2024, eq. 9). `None` (the
            default) adds none.
        shared_expert_gate: Bool. Whether the output of the shared expert is
            multiplied by `sigmoid(x w)`, with one learned vector w, as in
            Qwen-MoE and Qwen2-MoE. Requires `shared_expert_dim`. False by
            default: the output is added unchanged.
        router: Router with the same `num_experts`. `None` (the default) builds
            `Router(num_experts, top_k, jitter=jitter)`. Another block's
            `router` is shared with that block.
        experts: `Expert` with the same `num_experts`, or a list of that many
            layers of any kind, each from `(n, D)` to `(n, D)`; see
            `ExpertLayers`. `None` (the default) builds an `Expert`. Another
            block's `experts` are shared with that block, in memory and in a
            saved model.
        share_experts_with: Block to share experts with. Same as
            `experts=other.experts`.
        level: `"token"` (the default) routes each token separately;
            `"example"` routes whole entries of the first axis by their mean
            token (Kudugunta et al. 2021, "Beyond Distillation", section 2).
            Experts then get examples with all their axes, as a convolution or
            an LSTM needs them.
        load_balancing: `"switch"` (the default) balances the batch;
            `"per_sequence"` each sequence, the axis before the last,
            separately; `"global_batch"` the batches of all replicas together.
            The z-loss and a router's own losses always cover all replicas. See
            `keras_moe.losses`.
        load_balancing_weight: Float, 0 or above. Weight of the load-balancing
            loss in training. `None` (the default) is the router's own: 0.01,
            as in Switch, or 0 for a router that balances in another way. A
            schedule of `keras.optimizers.schedules` gives the weight at each
            training step.
        router_z_weight: Float, 0 or above. Weight of the router z-loss. 0 by
            default; ST-MoE uses 0.001.
        jitter: Float. Argument of `Router`. 0 by default.
        seed: Int. Seed of jitter and dropout. `None` (the default) draws one.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        router, experts, shared_expert, shared_expert_gate: The layers inside.
            The last two are None if there are none.
        expert_load, fraction_dropped: See `Mixture`.

    Call arguments:
        inputs: Float tensor of shape `(..., D)` and rank 2 or more.
        mask: Bool tensor of shape `(...)`, False for padding. Padding tokens
            are excluded from losses, load statistics, and capacity, and their
            outputs are zero; see also `compute_padding`.
        training: Bool.
        router_inputs: What the router needs in addition to the tokens or
            examples, such as ids for `HashRouter` and `RuleRouter`; or the
            hidden states `(..., D')` that the router reads while the experts
            compute the inputs, if it has a `router_inputs_dim` (with
            `level="example"`, one state per example).
        replay: `Assignment` of an earlier call, whose choices are repeated;
            see `BaseRouter`.
        return_assignment: Bool. Whether to return `(outputs, assignment)`,
            with the `Assignment` after capacity. False by default.
        inputs_mask: The Keras mask of `inputs`, which Keras passes by this
            name if there are router inputs or a replay.

    Returns:
        Tensor of shape `(..., D)`, in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, if the router or the
            experts disagree with the block, if the inputs have integers, a
            rank below 2, or an unknown width, or if the mask does not fit.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 1.

    Example:

    ```python
    inputs = keras.Input((None, 16))
    block = keras_moe.MoEBlock(num_experts=4, intermediate_dim=32, top_k=2)
    x = inputs + block(keras.layers.LayerNormalization()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile("adam", "mse")  # `fit` adds the block's losses
    ```
    """

    def __init__(
        self,
        num_experts: int | None = None,
        intermediate_dim: int | None = None,
        top_k: int = 2,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        priority: str = "position",
        activation: str | Activation | None = "relu",
        gated: bool = False,
        use_bias: bool = True,
        shared_expert_dim: int | None = None,
        router: BaseRouter | None = None,
        experts: Experts | None = None,
        share_experts_with: keras.layers.Layer | None = None,
        level: str = "token",
        load_balancing: str = "switch",
        load_balancing_weight: LossWeight | None = None,
        router_z_weight: float = 0.0,
        jitter: float = 0.0,
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
        seed: int | None = None,
        shared_expert_gate: bool = False,
        weights_on: str = "outputs",
        expert_capacity: int | None = None,
        compute_padding: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        experts = block_parts.shared_experts_of(experts, share_experts_with)
        num_experts = block_parts.num_experts_of(num_experts, experts, router)
        self.init_mixture(
            num_experts,
            capacity_factor,
            eval_capacity_factor,
            priority,
            load_balancing,
            load_balancing_weight,
            router_z_weight,
        )
        self.seed = checks.check_seed(seed)
        routing_arguments = {"top_k": top_k, "jitter": jitter}
        common = {"seed": self.seed, "dtype": self.dtype_policy}
        self._router_given = router is not None
        self.router = block_parts.router_of(
            router, num_experts, routing_arguments, common
        )
        arguments = {
            "intermediate_dim": intermediate_dim,
            "gated": gated,
            "use_bias": use_bias,
            "dropout": dropout,
            "remat": remat,
            **expert_checks.checked_style(
                activation=activation,
                kernel_initializer=kernel_initializer,
                bias_initializer=bias_initializer,
                kernel_regularizer=kernel_regularizer,
                bias_regularizer=bias_regularizer,
                kernel_constraint=kernel_constraint,
                bias_constraint=bias_constraint,
            ),
        }
        self._experts_given = experts is not None
        self.experts = block_parts.experts_of(
            experts, num_experts, arguments, common
        )
        sharing.own(self, self.router, self.experts)
        self.shared_expert_dim = checks.check_optional_int(
            "shared_expert_dim", shared_expert_dim
        )
        self.shared_expert = block_parts.shared_expert_of(
            shared_expert_dim, self.experts, arguments, common
        )
        self.shared_expert_gate = block_parts.shared_gate_of(
            shared_expert_gate, self.shared_expert, self.dtype_policy
        )
        self.null_experts = None
        if self.router.num_null_experts:
            self.null_experts = NullExperts(
                self.router.num_null_experts,
                self.router.null_outputs,
                name="null_experts",
                dtype=self.dtype_policy,
            )
        self.weights_on = block_checks.check_weights_on(
            weights_on, self.router.num_null_experts
        )
        self.level = check_level(
            level, load_balancing, self.router.num_null_experts
        )
        self.expert_capacity = block_checks.check_expert_capacity(
            expert_capacity, level, self
        )
        self.compute_padding = block_checks.check_compute_padding(
            compute_padding, level
        )
        self.causal = self.router.causal and level == "token"

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        tokens_shape: Shape = (None, self.hidden_dim)
        by_token = self.level == "token"
        rows_shape = tokens_shape if by_token else (None, *input_shape[1:])
        if not self.experts.built:
            self.experts.build(rows_shape)
        expert_checks.check_output_shape(self, rows_shape)
        for layer in (
            self.router,
            self.shared_expert,
            self.shared_expert_gate,
            self.null_experts,
        ):
            if layer is not None and not layer.built:
                layer.build(tokens_shape)
        self.build_report()

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Assignment]:
        """Route, dispatch, compute, and combine; see the class."""
        mask = inputs_mask if mask is None else mask
        loss_mask = None
        if self.compute_padding:
            mask, loss_mask = None, mask
        units = units_of(self.level, inputs, mask, self.hidden_dim)
        chosen = kernels.call_part(
            self,
            self.router,
            units.features,
            mask=units.features_mask,
            training=training,
            router_inputs=router_inputs,
            replay=replay,
            **({} if loss_mask is None else {"loss_mask": loss_mask}),
        )
        num_units = ops.shape(units.rows)[0]
        kept, capacity = self.apply_capacity(
            chosen, num_units, training, inputs
        )
        per_token = self.router.pairs_per_token
        bank = spread_bank(self.experts, num_units, training, units)
        if bank is not None:  # experts or tokens lie on several devices
            outputs = mix_across(
                bank,
                units.rows,
                kept,
                self.num_experts,
                per_token,
                capacity,
                self.weights_on,
            )
        else:
            pair_order, group_sizes = sort_by_expert(
                kept.expert_index, self.num_experts
            )
            of_inputs, of_outputs = split_weights(
                self.weights_on, kept.combine_weights
            )
            rows = dispatch(
                units.rows, kept.token_index, pair_order, per_token, of_inputs
            )
            outputs = kernels.call_part(
                self,
                self.experts,
                units.for_experts(rows),
                group_sizes=group_sizes,
                training=training,
                mask=units.mask_of_rows(kept.token_index, pair_order.order),
                most_rows=capacity,
            )
            outputs = combine(
                units.as_rows(outputs),
                kept.token_index,
                of_outputs,
                pair_order,
                num_units,
                per_token,
            )
        outputs = units.as_tokens(outputs)
        if self.null_experts is not None:
            outputs = outputs + self.null_experts(
                units.rows, kept, pairs_per_token=per_token
            )
        if self.shared_expert is not None:
            tokens = units.as_tokens(units.rows)
            shared = kernels.call_part(
                self, self.shared_expert, tokens, training=training
            )
            if self.shared_expert_gate is not None:
                shared = kernels.call_part(
                    self, self.shared_expert_gate, tokens, shared
                )
            outputs = outputs + zero_padding(shared, units.token_mask)
        if training:
            counted = flatten_mask(loss_mask, inputs)
            self.report(
                only_tokens(chosen, counted),
                only_tokens(kept, counted),
                units.mask if counted is None else counted,
                inputs,
            )
        if len(inputs.shape) > 2:
            outputs = ops.reshape(outputs, ops.shape(inputs))
        if self._experts_given:  # their dtype policy may be another
            outputs = ops.cast(outputs, self.compute_dtype)
        return (outputs, kept) if return_assignment else outputs

    def initialize_from(
        self,
        source: Expert | Sequence[keras.layers.Dense],
        noise_std: float = 0.0,
        seed: int | None = None,
    ) -> None:
        """Make each routed expert a copy of one trained network, plus noise.

        The router and the shared expert stay unchanged (Komatsuzaki et al.
        2022). See `Expert.initialize_from` for the arguments.

        Raises:
            ValueError: If the experts are a list of layers, or if the source
                does not fit.
        """
        upcycling.check_bank(self.experts)
        if not self.built:
            self.build((None, upcycling.hidden_dim_of(source)))
        self.experts.initialize_from(source, noise_std, seed)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_output_spec(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Assignment]:
        """Return the symbolic outputs of symbolic inputs."""
        checks.check_floating(inputs)
        self.router.check_inputs_given(router_inputs)
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        if not return_assignment:
            return outputs
        return outputs, self.router.assignment_spec(inputs.shape)

    def compute_mask(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor | None:
        """Return the mask unchanged; an `Assignment` has none."""
        return mask

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        config = {
            **super().get_config(),
            "dtype": quantization.saved_dtype(self),
            **self.mixture_config(),
            "shared_expert_dim": self.shared_expert_dim,
            "shared_expert_gate": self.shared_expert_gate is not None,
            "weights_on": self.weights_on,
            "expert_capacity": self.expert_capacity,
            "compute_padding": self.compute_padding,
            "level": self.level,
            "seed": self.seed,
        }
        given = self._router_given, self._experts_given
        return config | block_parts.config_of(self, given)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the layer that `get_config` describes."""
        block: Self = super().from_config(block_parts.with_layers(config))
        return block
