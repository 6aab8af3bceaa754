"""Base class of all routers: layers from tokens to an `Assignment`.

T tokens, D hidden_dim, E experts, N null experts, K top_k, P routed pairs.

A router is a small layer that owns weights and calls one function of
`keras_moe.routing`. It subclasses `BaseRouter` and implements `route`.
"""

from typing import Any, NamedTuple

import keras

from keras_moe import checks
from keras_moe.checks import router_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.layers import quantization
from keras_moe.layers.added_losses import floatx_regularizer
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.routers.expert_switches import ExpertSwitches
from keras_moe.layers.seeds import SeedGenerator
from keras_moe.layers.tokens import flatten_mask, flatten_tokens
from keras_moe.routing import Assignment, Conditions
from keras_moe.types import Shape, Tensor


def without(arguments: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """Return the argument names without those that a subclass fixes."""
    return tuple(name for name in arguments if name not in names)


class TokenBatch(NamedTuple):
    """Holds the tokens to route, and the conditions of the call.

    tokens: float32 `(T, D)`, zero for padding.
    inputs: `(..., D)`, the inputs of the call, unchanged.
    router_inputs: the router inputs of the call, unchanged, or None.
    training: bool. False for a frozen router.
    conditions: the padding, the experts that are off, and a replay.

    Example:

    ```python
    class Widest(keras_moe.layers.LearnedRouter):
        top_k = 1

        def route(self, batch):  # a TokenBatch
            logits = self.logits(batch)  # (T, E), of `batch.tokens` (T, D)
            return routing.top_k_assignment(
                logits, 1, conditions=batch.conditions, normalize_weights=False
            )
    ```
    """

    tokens: Tensor
    inputs: Tensor
    router_inputs: Tensor | None
    training: bool
    conditions: Conditions


class BaseRouter(
    ExpertSwitches,
    NamedArguments,
    quantization.KeptInFloats,
    MoELayer,
):
    """Base class of all routers; computes in float32 under every dtype policy.

    A subclass implements `route(batch)`, lists its own arguments in
    `arguments` (`get_config` saves the attributes of these names), and
    creates its weights in `build`, after `super().build(input_shape)`.

    Args:
        num_experts: Int, E.
        expert_dropout: Float, 0 or above and below 1. Rate at which each
            expert is switched off for a training step, so that the model
            learns to work without it. As many experts as a token needs stay
            on. 0 (the default) switches none off.
        seed: Int. Seed of all random draws. `None` (the default) draws one.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `expert_enabled` `(E,)`, 1 or 0, not trained.

    Attributes:
        causal: Bool. Whether a token's experts and weights never depend on
            later tokens or on other sequences, in training either. A causal
            model rejects a router without it. False by default.
        reads_context: Bool. Whether a token's experts depend on earlier tokens
            of its sequence, so that tokens cannot be routed one at a time.

    Call arguments:
        x: Float tensor of shape `(..., D)`.
        mask: Bool tensor of shape `(...)`, False for padding, which no expert
            computes.
        training: Bool. Random draws happen only in training.
        router_inputs: What the router needs in addition to the tokens, if
            anything; or, if its `router_inputs_kind` is `"states"`, float
            `(..., D')`, which it reads in place of `x`.
        replay: `Assignment` of an earlier call on as many tokens. Its choices
            are repeated; weights and losses are computed again, so that
            gradients flow. Pairs that it did not compute stay out, and the
            others keep their weights, so a replay with the same router
            reproduces the call. If an expert was switched off since then, the
            weights are normalized over the other experts.
        x_mask: The Keras mask of `x`, which Keras passes by this name if there
            are router inputs or a replay.
        loss_mask: Bool tensor of shape `(...)`, False for tokens that are
            routed, but excluded from losses and load.

    Returns:
        An `Assignment` of the flattened tokens.

    Raises:
        ValueError: If an argument is out of its range, if `x` has integers, a
            rank below 2, or an unknown width, if the mask does not fit, or if
            router inputs are missing or not used.

    Example:

    ```python
    class EvenRouter(keras_moe.layers.BaseRouter):
        top_k = 1  # each token goes to one expert, in turn

        def route(self, batch):
            place = ops.arange(ops.shape(batch.tokens)[0], dtype="int32")
            return routing.rule_assignment(
                place % self.num_experts,
                self.num_experts,
                conditions=batch.conditions,
            )
    ```
    """

    arguments: tuple[str, ...] = ("num_experts", "expert_dropout", "seed")
    fixed_arguments: tuple[str, ...] = ("autocast",)
    # Attributes that hold a weight, and its axes over E or more experts.
    expert_axes: dict[str, tuple[int, ...]] = {"expert_enabled": (0,)}
    router_inputs_use = "none"  # or "optional", or "required"
    router_inputs_kind = "ids"  # or "logits", or "states"
    router_inputs_dim: int | None = None  # D', the width of "states"
    num_null_experts = 0
    null_outputs = "mixed"  # or "identity"; see `NullExperts`
    # Experts per token; if that varies, the mean or the maximum.
    top_k: int = 1
    load_balancing_weight = 0.0  # of a block whose own argument is None
    # Whether the block's load-balancing loss counts first choices only.
    balances_first_choice = False
    has_loss = False  # whether `router_loss` may be above zero
    causal = False
    reads_tokens = True  # False if router inputs alone decide
    reads_context = False

    def __init__(
        self,
        num_experts: int,
        expert_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.expert_dropout = checks.check_rate(
            "expert_dropout", expert_dropout
        )
        self.seed = checks.check_seed(seed)
        self.seed_generator = SeedGenerator(self.seed)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep layers inside a router from being quantized."""
        if isinstance(value, (keras.layers.Layer, list, tuple, dict)):
            quantization.keep_floats(value)
        super().__setattr__(name, value)

    @property
    def pairs_per_token(self) -> int | None:
        """K if the pairs of token t are at `t * K ... t * K + K-1`, or None."""
        return self.top_k

    def route(self, batch: TokenBatch) -> Assignment:
        """Return the `Assignment` of a batch; a subclass implements it."""
        raise NotImplementedError

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self.expert_enabled = self.add_router_weight(
            "expert_enabled", (self.num_experts,), "ones", trainable=False
        )

    def add_router_weight(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: str | keras.initializers.Initializer,
        **options: Any,
    ) -> keras.Variable:
        """Add a float32 weight that no dtype policy casts.

        Its attribute `of_router` is True, so that optimizers can treat the
        weights of routers in a different way.

        Args:
            name: Str. Name of the weight.
            shape: Tuple of int.
            initializer: Keras initializer, or the name of one.
            **options: Arguments of `add_weight`, such as `trainable` and
                `regularizer`.
        """
        regularizer = options.pop("regularizer", None)
        if options.get("trainable") is False:
            options["aggregation"] = "mean"
        weight = self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype="float32",
            autocast=False,
            regularizer=floatx_regularizer(regularizer),
            **options,
        )
        weight.of_router = True
        return weight

    def call(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        x_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Assignment:
        """Route tokens `(..., D)`; see the class."""
        self.check_inputs_given(router_inputs)
        training = bool(training) and self.trainable  # like BatchNormalization
        mask = x_mask if mask is None else mask
        if self.router_inputs_kind == "states":
            router_checks.check_states(self, router_inputs, x.shape)
            x, router_inputs = ops.convert_to_tensor(router_inputs), None
        tokens, token_mask = flatten_tokens(x, mask, self.hidden_dim)
        available = self.expert_enabled.value > 0
        if training and self.expert_dropout:
            available = self.drop_experts(available)
        columns = self.num_experts + self.num_null_experts
        conditions = Conditions(
            token_mask,
            available,
            router_checks.check_replay(replay, tokens, columns),
            _counted(flatten_mask(loss_mask, x), token_mask),
        )
        return self.route(
            TokenBatch(
                ops.cast(tokens, "float32"),
                x,
                router_inputs,
                training,
                conditions,
            )
        )

    def compute_output_shape(
        self, input_shape: Shape, **kwargs: Any
    ) -> Assignment:
        """Return the shapes of the `Assignment` of inputs `(..., D)`."""
        spec = self.assignment_spec(input_shape)
        return Assignment(*(field.shape for field in spec))

    def compute_output_spec(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        x_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Assignment:
        """Return the symbolic `Assignment` of symbolic inputs."""
        checks.check_floating(x)
        self.check_inputs_given(router_inputs)
        return self.assignment_spec(x.shape)

    def check_inputs_given(self, router_inputs: Tensor | None) -> None:
        """Check that router inputs are given if, and only if, they are used.

        Layers that contain a router call this function on symbolic inputs, so
        that a functional model without router inputs fails when it is built.

        Raises:
            ValueError: If router inputs are missing, or given but not used.
        """
        router_checks.check_router_inputs_given(self, router_inputs)

    def assignment_spec(self, input_shape: Shape) -> Assignment:
        """Return the symbolic `Assignment` for inputs `(..., D)`."""
        tokens: int | None = 1
        for size in input_shape[:-1]:
            tokens = None if tokens is None or size is None else tokens * size
        pairs, per_token = None, self.pairs_per_token
        if tokens is not None and per_token is not None:
            pairs = tokens * per_token
        spec = keras.KerasTensor
        columns = self.num_experts + self.num_null_experts
        return Assignment(
            token_index=spec((pairs,), "int32"),
            expert_index=spec((pairs,), "int32"),
            combine_weights=spec((pairs,), "float32"),
            router_probs=spec((tokens, self.num_experts), "float32"),
            router_logits=spec((tokens, columns), "float32"),
            router_loss=spec((), "float32"),
        )

    def compute_mask(self, x: Tensor, mask: Tensor | None = None) -> None:
        """Return None: the `Assignment` already accounts for the mask."""
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.arguments
        }
        return {**super().get_config(), **own}


def _counted(
    loss_mask: Tensor | None, token_mask: Tensor | None
) -> Tensor | None:
    """Return a loss mask without padding, or None if there is none."""
    if loss_mask is None or token_mask is None:
        return loss_mask
    return ops.logical_and(loss_mask, token_mask)
