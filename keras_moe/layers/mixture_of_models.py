"""Mixture whose experts are whole models.

B examples, D width of the features, E experts, K top_k, P routed pairs.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops, tree

from keras_moe import checks, dispatch, kernels, routing
from keras_moe.checks import model_checks
from keras_moe.layers import sharing
from keras_moe.layers.block_parts import router_of
from keras_moe.layers.expert_layers import ExpertLayers, mask_for
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.routers.base_router import BaseRouter
from keras_moe.layers.scheduled import LossWeight
from keras_moe.layers.tokens import units_of
from keras_moe.types import Assignment, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MixtureOfModels(Mixture, keras.Model):
    """Mixes the outputs of whole models with the weights of a router.

    Without `top_k`, all experts run on all examples, with softmax weights. With
    `top_k`, each example goes to its best K experts, and each expert runs only
    on its examples, for instance on the texts of its domain.

    The outputs are averaged: use experts that end with probabilities to
    average probabilities. With `top_k=1` the weight is the router's
    probability, so that it learns; `router=Router(E, 1)` selects an expert
    with the weight 1.

    Args:
        experts: List of E layers or models of any kind, from the inputs to
            outputs of one structure and shape; see `ExpertLayers`.
        router: A router of E experts. `None` (the default) builds a `Router`.
            `RuleRouter` takes the expert of each example as `router_inputs`.
        top_k: Int, K. Experts per example, 1 to E. `None` (the default) is all
            experts, or the router's own number if `router` is given.
        features: Layer from the inputs to the float inputs `(B, D)` of the
            router, such as an embedding with pooling. `None` (the default) is
            the mean of the inputs over the axes between the first and the
            last; these must be floats, unless the router uses only
            `router_inputs`.
        capacity_factor, eval_capacity_factor, priority, load_balancing_weight,
        router_z_weight: As in `MoEBlock`, with examples in place of tokens,
            for mixtures with `top_k` or `router`.
        seed: Int. Seed of the router. `None` (the default) draws one.
        load_balancing: `"switch"` (the default) balances the experts over the
            examples of a batch; `"global_batch"` over the batches of all
            replicas together, as in `MoEBlock`. `"per_sequence"` is rejected,
            because an example has no sequence.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: Tensor or nest of tensors `(B, ...)`.
        mask: Bool tensor of shape `(B, S)`, False for padding, if `inputs` is
            a single tensor. It is passed to `features` and to the experts that
            accept a mask.
        training: Bool.
        router_inputs: Int tensor of shape `(B,)`, for routers that need it.
        return_assignment: Bool. Whether to return `(outputs, assignment)`.
            False by default.
        inputs_mask: The Keras mask of `inputs`, which Keras passes by this
            name if there are router inputs.

    Returns:
        The weighted outputs of the experts, `(B, ...)`.

    Raises:
        ValueError: If an argument is out of its range, if the experts or the
            router disagree, or if the router cannot choose from the inputs.

    Reference: Jacobs et al. 1991, "Adaptive Mixtures of Local Experts", eq. 1.

    Example:

    ```python
    def classifier(units):
        return keras.Sequential(
            [
                keras.layers.Dense(units, activation="relu"),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )

    experts = [classifier(units) for units in (8, 16, 32)]
    model = keras_moe.MixtureOfModels(experts, top_k=1)
    probabilities = model(keras.random.normal((4, 16)))
    ```
    """

    def __init__(
        self,
        experts: Sequence[keras.layers.Layer],
        router: BaseRouter | None = None,
        top_k: int | None = None,
        features: keras.layers.Layer | None = None,
        capacity_factor: float | None = None,
        eval_capacity_factor: float | None = None,
        priority: str = "position",
        load_balancing_weight: LossWeight | None = None,
        router_z_weight: float = 0.0,
        seed: int | None = None,
        load_balancing: str = "switch",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.experts = ExpertLayers(experts, name="experts")
        num_experts = self.experts.num_experts
        self.top_k = top_k
        if top_k is not None:
            self.top_k = checks.check_top_k(top_k, num_experts)
        self._router_given = router is not None
        model_checks.check_no_top_k(router, top_k)
        default = {"top_k": top_k or num_experts} if router is None else {}
        self.seed = checks.check_seed(seed)
        self.router = router_of(
            router, num_experts, default, {"seed": self.seed}
        )
        self.features = model_checks.check_features(features)
        given = (part for part in (router, features) if part is not None)
        sharing.own(self, *given)
        self.init_mixture(
            num_experts,
            capacity_factor,
            eval_capacity_factor,
            priority,
            model_checks.check_load_balancing(load_balancing),
            load_balancing_weight,
            router_z_weight,
        )
        limits = capacity_factor, eval_capacity_factor
        self.runs_all = router is None and top_k is None and not any(limits)

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs `(B, ...)`."""
        self.experts.build(input_shape)
        features_shape = input_shape
        if not self.router.reads_tokens:
            features_shape = (None, 1)
        if self.features is not None:
            if not self.features.built:
                self.features.build(input_shape)
            features_shape = self.features.compute_output_shape(input_shape)
        model_checks.check_features_shape(features_shape, self.features)
        if not self.router.built:
            self.router.build((None, features_shape[-1]))
        self.build_report()
        self.built = True

    def call(
        self,
        inputs: Any,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Any:
        """Route the examples, run the experts, and mix their outputs."""
        mask = model_checks.only_mask(inputs_mask if mask is None else mask)
        features, example_mask = self._features_of(inputs, mask, training)
        chosen = self.router(
            features,
            mask=example_mask,
            training=training,
            router_inputs=router_inputs,
        )
        num_examples = ops.shape(features)[0]
        kept, capacity = self.apply_capacity(chosen, num_examples, training)
        if self.runs_all:
            outputs = self._run_all(inputs, mask, kept, training)
        else:
            outputs = self._run_chosen(inputs, mask, kept, capacity, training)
        if training:
            self.report(chosen, kept, example_mask)
        return (outputs, kept) if return_assignment else outputs

    def _features_of(
        self, inputs: Any, mask: Tensor | None, training: bool | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the router's inputs `(B, D)` and the mask of the examples."""
        example_mask = None
        if mask is not None:
            words = ops.reshape(mask, (ops.shape(mask)[0], -1))
            example_mask = ops.any(ops.cast(words, "bool"), axis=1)
        if self.features is not None:
            options = mask_for(self.features, mask)
            features = self.features(inputs, training=training, **options)
            return features, example_mask
        if not self.router.reads_tokens:
            examples = ops.shape(tree.flatten(inputs)[0])[0]
            return ops.zeros((examples, 1)), example_mask
        model_checks.check_float_features(inputs)
        units = units_of("example", inputs, mask, inputs.shape[-1])
        return units.features, units.mask

    def _run_all(
        self,
        inputs: Any,
        mask: Tensor | None,
        assignment: Assignment,
        training: bool | None,
    ) -> Any:
        """Run every expert on every example."""
        num_experts = self.num_experts
        weights = routing.dense_weights(
            assignment, num_experts, ops.arange(num_experts, dtype="int32")
        )

        def weigh(*outputs: Tensor) -> Tensor:
            total: Tensor = 0
            for e, output in enumerate(outputs):
                shape = (-1,) + (1,) * (len(output.shape) - 1)
                weight = ops.reshape(weights[:, e], shape)
                total = total + ops.cast(weight, output.dtype) * output
            return total

        outputs = self.experts.run_all(inputs, mask, training)
        return tree.map_structure(weigh, *outputs)

    def _run_chosen(
        self,
        inputs: Any,
        mask: Tensor | None,
        assignment: Assignment,
        capacity: int | Tensor | None,
        training: bool | None,
    ) -> Any:
        """Run each expert on its examples."""
        pair_order, pairs_per_expert = dispatch.sort_by_expert(
            assignment.expert_index, self.num_experts
        )
        source = kernels.take_rows(assignment.token_index, pair_order.order)

        def send(x: Tensor) -> Tensor:
            return kernels.take_rows(x, source)

        outputs = self.experts(
            tree.map_structure(send, inputs),
            group_sizes=pairs_per_expert,
            training=training,
            mask=None if mask is None else send(mask),
            most_rows=capacity,
        )
        num_examples = ops.shape(tree.flatten(inputs)[0])[0]

        def bring_back(rows: Tensor) -> Tensor:
            shape = ops.shape(rows)
            flat = dispatch.combine(
                ops.reshape(rows, (shape[0], math.prod(shape[1:]))),
                assignment.token_index,
                assignment.combine_weights,
                pair_order,
                num_examples,
                self.router.pairs_per_token,
            )
            return ops.reshape(flat, (-1, *shape[1:]))

        return tree.map_structure(bring_back, outputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the outputs, which all experts share."""
        return self.experts.layers[0].compute_output_shape(input_shape)

    def compute_output_spec(
        self,
        inputs: Any,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Any:
        """Return the symbolic outputs of symbolic inputs."""
        self.router.check_inputs_given(router_inputs)
        batch = tree.flatten(inputs)[0].shape[0]
        outputs = tree.map_structure(
            lambda x: keras.KerasTensor((batch, *x.shape[1:]), x.dtype),
            self.experts.compute_output_spec(inputs),
        )
        if not return_assignment:
            return outputs
        features = (batch, self.router.hidden_dim)
        return outputs, self.router.assignment_spec(features)

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        """Return None: the outputs of the experts have no common mask."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        config = self.mixture_config()
        del config["num_experts"]
        serialize = keras.saving.serialize_keras_object

        router = features = None
        if self._router_given:
            router = sharing.serialize_part(self.router, self)
        if self.features is not None:
            features = sharing.serialize_part(self.features, self)
        return {
            "name": self.name,
            "trainable": self.trainable,
            **self.trainable_config(),
            "dtype": serialize(self.dtype_policy),
            **config,
            "experts": [
                sharing.serialize_part(x, self.experts)
                for x in self.experts.layers
            ],
            "router": router,
            "features": features,
            "top_k": self.top_k,
            "seed": self.seed,
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""
        return cls(
            **sharing.deserialize_parts(
                config, *_PARTS, custom_objects=custom_objects
            )
        )


_PARTS = (
    "experts",
    "router",
    "features",
    "load_balancing_weight",
    "dtype",
)
