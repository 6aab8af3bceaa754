"""The mixture-of-experts block: router, dispatch, experts, combine.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, P pairs.
"""

import keras

from keras_moe import checks, kernels
from keras_moe.checks import expert_checks
from keras_moe.dispatch import combine, dispatch, sort_by_expert
from keras_moe.kernels import light_ops as ops
from keras_moe.layers import (
    block_parts,
    quantization,
    sharing,
    upcycling,
)
from keras_moe.layers.expert_parallel import mix_across, spread_bank
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.null_experts import NullExperts
from keras_moe.layers.tokens import check_level, units_of, zero_padding
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MoEBlock(Mixture):
    """Sends each token through its best K of E feed-forward experts.

    Takes the place of a `Dense -> activation -> Dense` in any model. The cost
    follows K, not E: only the chosen experts compute a token (Shazeer et al.
    2017, "Outrageously Large Neural Networks", eq. 1).

    Gradients of gradients are right on every backend, e.g. for a gradient
    penalty. For forward mode (`jax.jvp`, `jax.hessian`), see
    `keras_moe.kernels.use`.

    Args:
        num_experts: E. 8 is a common start, 64 and more with small experts.
            `None` takes it from `experts`, or else from `router`.
        intermediate_dim: F, the inner width of each expert. The dense layer's
            width divided by `top_k` keeps the dense layer's cost. None where
            `experts` is given.
        top_k: K, experts a token is sent to, 1 to E. The K weights are
            renormalised to sum to one; with K = 1 the weight is the router's
            probability (Fedus et al. 2021, eq. 2), so that the router learns.
        capacity_factor: None (dropless), or the factor above 0 by which an
            expert's places in training exceed its even share,
            `C = ceil(K * T * capacity_factor / E)`, where E counts the
            experts that are on (see `routing.expert_capacity`). Pairs beyond
            C are dropped: their token keeps its other experts, or comes out as
            zero, which a residual connection turns into a pass-through.
        eval_capacity_factor: the same outside training. None, the default,
            drops nothing there, whatever `capacity_factor` is.
        priority: `"position"` keeps the earlier tokens, `"score"` those with
            the highest router probability.
        activation, gated, use_bias, dropout, kernel_initializer,
        bias_initializer, kernel_regularizer, bias_regularizer,
        kernel_constraint, bias_constraint, remat: of the experts; see
            `Expert`.
        shared_expert_dim: inner width of one more expert that sees every token
            (DeepSeekMoE, Dai et al. 2024, eq. 9), or None.
        router: a configured router with the same `num_experts`; None builds
            `Router(num_experts, top_k, jitter=jitter)`.
        experts: a configured `Expert` with the same `num_experts`, or a list
            of that many layers of any kind, each from `(n, D)` to `(n, D)`;
            see `ExpertLayers`. Those of another block, `other.experts`, are
            shared with it, in memory and in a saved model; a `router`
            likewise.
        share_experts_with: another block, whose experts this one has as well;
            a short form of `experts=other.experts`.
        level: `"token"` routes each token by itself; `"example"` each entry
            of the first axis whole, by its mean token (Kudugunta et al. 2021,
            "Beyond Distillation", section 2). An expert then sees examples
            with all their axes, as a convolution or an LSTM needs them.
        load_balancing: `"switch"` balances the batch; `"per_sequence"` each
            sequence, the axis before the last, by itself; `"global_batch"`
            the batches of all replicas together. The z-loss, and the losses
            that a router has of its own, are over all replicas under each
            choice. See `keras_moe.losses`.
        load_balancing_weight: weight of that loss, 0 or above, in training.
            None is the router's own: 0.01, Switch's, and 0 for a router that
            balances in another way. A `keras.optimizers.schedules` schedule
            gives the weight at each training step.
        router_z_weight: weight of the router z-loss; 0.001 is ST-MoE's.
        jitter: of the router; see `Router`.
        seed: int, for jitter and dropout.
        **kwargs: of `keras.layers.Layer`.

    Attributes:
        router, experts, shared_expert: the layers inside.
        expert_load, fraction_dropped: see `Mixture`.

    Call arguments:
        inputs: float `(..., D)` of rank 2 or more.
        mask: bool `(...)`, False for padding. Padding is sent nowhere, counts
            nowhere and comes out as zero.
        training: bool.
        router_inputs: what the router needs beside the tokens, or examples:
            ids for `HashRouter` and `RuleRouter`.
        replay: an `Assignment` of an earlier call, whose choices are taken
            again; see `BaseRouter`.
        return_assignment: whether to return `(outputs, assignment)`, with the
            `Assignment` as it was carried out, after capacity.
        inputs_mask: the mask that Keras has for `inputs`, which it passes by
            this name where there are router inputs or a replay.

    Returns:
        `(..., D)`, in the compute dtype.

    Raises:
        ValueError: for an argument out of its range, a router or experts that
            disagree with the block, inputs of rank below 2, of unknown width
            or of integers, or a mask that does not fit.

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
        activation="relu",
        gated: bool = False,
        use_bias: bool = True,
        shared_expert_dim: int | None = None,
        router=None,
        experts=None,
        share_experts_with=None,
        level: str = "token",
        load_balancing: str = "switch",
        load_balancing_weight=None,
        router_z_weight: float = 0.0,
        jitter: float = 0.0,
        dropout: float = 0.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        remat: bool = False,
        seed: int | None = None,
        **kwargs,
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
            "activation": checks.check_activation(activation),
            "gated": gated,
            "use_bias": use_bias,
            "dropout": dropout,
            "kernel_initializer": checks.check_initializer(
                "kernel_initializer", kernel_initializer
            ),
            "bias_initializer": checks.check_initializer(
                "bias_initializer", bias_initializer
            ),
            "kernel_regularizer": checks.check_regularizer(
                "kernel_regularizer", kernel_regularizer
            ),
            "bias_regularizer": checks.check_regularizer(
                "bias_regularizer", bias_regularizer
            ),
            "kernel_constraint": checks.check_constraint(
                "kernel_constraint", kernel_constraint
            ),
            "bias_constraint": checks.check_constraint(
                "bias_constraint", bias_constraint
            ),
            "remat": remat,
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
        self.null_experts = None
        if self.router.num_null_experts:
            self.null_experts = NullExperts(
                self.router.num_null_experts,
                name="null_experts",
                dtype=self.dtype_policy,
            )
        self.level = check_level(
            level, load_balancing, self.router.num_null_experts
        )
        self.causal = self.router.causal and level == "token"

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        tokens_shape: Shape = (None, self.hidden_dim)
        by_token = self.level == "token"
        rows_shape = tokens_shape if by_token else (None, *input_shape[1:])
        if not self.experts.built:
            self.experts.build(rows_shape)
        expert_checks.check_output_shape(self, rows_shape)
        for layer in (self.router, self.shared_expert, self.null_experts):
            if layer is not None and not layer.built:
                layer.build(tokens_shape)
        self.build_report()

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training=None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ):
        """Routes, computes and combines; see the class."""
        mask = inputs_mask if mask is None else mask
        units = units_of(self.level, inputs, mask, self.hidden_dim)
        chosen = kernels.call_part(
            self,
            self.router,
            units.features,
            mask=units.features_mask,
            training=training,
            router_inputs=router_inputs,
            replay=replay,
        )
        num_units = ops.shape(units.rows)[0]
        kept, capacity = self.apply_capacity(chosen, num_units, training)
        per_token = self.router.pairs_per_token
        bank = spread_bank(self.experts, num_units, training, units)
        if bank is not None:  # experts or tokens lie on several devices
            outputs = mix_across(
                bank, units.rows, kept, self.num_experts, per_token, capacity
            )
        else:
            pair_order, group_sizes = sort_by_expert(
                kept.expert_index, self.num_experts
            )
            rows = dispatch(units.rows, kept.token_index, pair_order, per_token)
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
                kept.combine_weights,
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
            shared = kernels.call_part(
                self,
                self.shared_expert,
                units.as_tokens(units.rows),
                training=training,
            )
            outputs = outputs + zero_padding(shared, units.token_mask)
        if training:
            length = None
            if self.load_balancing == "per_sequence":
                length = checks.check_sequence_length(ops.shape(inputs))
            self.report(chosen, kept, units.mask, length)
        if len(inputs.shape) > 2:
            outputs = ops.reshape(outputs, ops.shape(inputs))
        if self._experts_given:  # whose dtype policy may be another
            outputs = ops.cast(outputs, self.compute_dtype)
        return (outputs, kept) if return_assignment else outputs

    def initialize_from(
        self, source, noise_std: float = 0.0, seed: int | None = None
    ) -> None:
        """Starts the routed experts from one trained network (Komatsuzaki et
        al. 2022); the router and the shared expert stay as they are. See
        `Expert.initialize_from`.

        Raises:
            ValueError: If the experts are a list of layers, or if the source
                does not fit.
        """
        upcycling.check_bank(self.experts)
        if not self.built:
            self.build((None, upcycling.hidden_dim_of(source)))
        self.experts.initialize_from(source, noise_std, seed)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_output_spec(
        self,
        inputs,
        mask=None,
        training=None,
        router_inputs=None,
        replay=None,
        return_assignment=False,
        inputs_mask=None,
    ):
        """Returns the symbolic outputs of symbolic inputs."""
        checks.check_floating(inputs)
        self.router.check_inputs_given(router_inputs)
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        if not return_assignment:
            return outputs
        return outputs, self.router.assignment_spec(inputs.shape)

    def compute_mask(self, inputs, mask=None):
        """Passes the mask on; an `Assignment` has none."""
        return mask

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        config = {
            **super().get_config(),
            "dtype": quantization.saved_dtype(self),
            **self.mixture_config(),
            "shared_expert_dim": self.shared_expert_dim,
            "level": self.level,
            "seed": self.seed,
        }
        given = self._router_given, self._experts_given
        return config | block_parts.config_of(self, given)

    @classmethod
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        return super().from_config(block_parts.with_layers(config))
