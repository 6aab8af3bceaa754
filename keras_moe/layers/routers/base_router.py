"""What every router shares: tokens in, an Assignment out.

T tokens, D hidden_dim, E experts, N null experts, K top_k, P routed pairs.

A router is a small layer that owns weights and names one function of
`keras_moe.routing`. It subclasses `BaseRouter` and writes `route`.
"""

from typing import NamedTuple

import keras

from keras_moe import checks, kernels
from keras_moe.checks import router_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.layers import quantization
from keras_moe.layers.added_losses import floatx_regularizer
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.routers.expert_switches import ExpertSwitches
from keras_moe.layers.seeds import SeedGenerator
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.routing import Assignment, Conditions
from keras_moe.types import Shape, Tensor


def without(arguments: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """Returns the argument names that a subclass does not fix."""
    return tuple(name for name in arguments if name not in names)


class TokenBatch(NamedTuple):
    """What a router is asked about.

    tokens: float32 `(T, D)`, zero where there is padding.
    inputs: `(..., D)`, as they came.
    router_inputs: as they came, or None.
    training: bool.
    conditions: padding, experts that are off, a replay.

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
    """Base of all routers; computes in float32 under every dtype policy.

    A subclass writes `route(batch)`, names its own arguments in `arguments`
    (attributes of the same names are what `get_config` saves), and creates
    its weights in `build`, after the base's.

    Args:
        num_experts: E.
        expert_dropout: rate below 1 at which each expert is switched off for
            a training step, so that a model learns to do without it; as many
            as a token needs stay on.
        seed: int, for whatever the router draws.
        **kwargs: of `keras.layers.Layer`.

    Weights: `expert_enabled` `(E,)`, 1 or 0, not trained.

    Attributes:
        causal: whether no token's experts and weights follow from later
            tokens or from other sequences, in training either. A router that
            says nothing is taken not to be, and goes into no causal model.
        reads_context: whether they follow from earlier tokens of its
            sequence, so that it cannot decide one token at a time.

    Call arguments:
        x: float `(..., D)`.
        mask: bool `(...)`, False for padding, which is sent nowhere.
        training: bool; what is random happens in training alone.
        router_inputs: what the router needs beside the tokens, if anything.
        replay: an `Assignment` of an earlier call on as many tokens, whose
            choices are taken again; weights and losses are computed anew, so
            that gradients flow. Pairs that it did not compute are left out
            again, and the others keep their weights: with the same router,
            a replay reproduces the call. Without one expert that is off by
            now, the weights are normalized among the others.
        x_mask: the mask that Keras has for `x`, which it passes by this name
            where there are router inputs or a replay.

    Returns:
        An `Assignment` of the flattened tokens.

    Raises:
        ValueError: for an argument out of its range, an input of rank below
            2, of unknown width or of integers, a mask that does not fit, and
            router inputs that are missing or not used.

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
    # Attributes that hold a weight, and its axes of E experts and what else.
    expert_axes: dict[str, tuple[int, ...]] = {"expert_enabled": (0,)}
    router_inputs_use = "none"  # or "optional", or "required"
    router_inputs_kind = "ids"  # or "logits": what they are
    num_null_experts = 0
    top_k: int = 1  # experts of a token; if that varies, the mean or the most
    load_balancing_weight = 0.0  # a block's, where it is told nothing else
    balances_first_choice = False  # whether the block's loss counts no other
    has_loss = False  # whether `router_loss` is more than zero
    causal = False
    reads_tokens = True  # False where router inputs alone decide
    reads_context = False

    def __init__(
        self,
        num_experts: int,
        expert_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.expert_dropout = checks.check_rate(
            "expert_dropout", expert_dropout
        )
        self.seed = checks.check_seed(seed)
        self.seed_generator = SeedGenerator(self.seed)

    def __setattr__(self, name, value):
        """Layers inside a router are not quantised."""
        if isinstance(value, (keras.layers.Layer, list, tuple, dict)):
            quantization.keep_floats(value)
        super().__setattr__(name, value)

    @property
    def pairs_per_token(self) -> int | None:
        """K where the pairs of token t stand at `t * K ... t * K + K-1`."""
        return self.top_k

    def route(self, batch: TokenBatch) -> Assignment:
        """Decides; what a subclass writes."""
        raise NotImplementedError

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self.expert_enabled = self.add_router_weight(
            "expert_enabled", (self.num_experts,), "ones", trainable=False
        )

    def add_router_weight(self, name, shape, initializer, **options):
        """Adds a float32 weight that no dtype policy casts.

        It says of itself that it is a router's: `of_router` is True, by which
        an optimizer tells it from the others.
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
        training=None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        x_mask: Tensor | None = None,
    ) -> Assignment:
        """Routes tokens `(..., D)`; see the class."""
        self.check_inputs_given(router_inputs)
        training = bool(training) and self.trainable  # as BatchNormalization
        mask = x_mask if mask is None else mask
        tokens, token_mask = flatten_tokens(x, mask, self.hidden_dim)
        columns = self.num_experts + self.num_null_experts
        conditions = Conditions(
            token_mask,
            self._available(training),
            router_checks.check_replay(replay, tokens, columns),
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

    def _available(self, training):
        """Bool `(E,)`: enabled, and not dropped for this step."""
        available = self.expert_enabled.value > 0
        if not (training and self.expert_dropout):
            return available
        drawn = keras.random.uniform(
            (self.num_experts,), seed=self.seed_generator, dtype="float32"
        )
        drawn = ops.where(available, drawn, -1.0)
        least = kernels.top_k_index(drawn[None], self.least_experts)[0]
        experts = ops.arange(self.num_experts, dtype="int32")
        stays = ops.any(ops.equal(least[:, None], experts), axis=0)
        kept = ops.logical_or(drawn >= self.expert_dropout, stays)
        return ops.logical_and(available, kept)

    def compute_output_shape(self, input_shape: Shape, **kwargs) -> Assignment:
        """Returns the shapes of the `Assignment` of inputs `(..., D)`."""
        spec = self.assignment_spec(input_shape)
        return Assignment(*(field.shape for field in spec))

    def compute_output_spec(
        self,
        x,
        mask=None,
        training=None,
        router_inputs=None,
        replay=None,
        x_mask=None,
    ) -> Assignment:
        """Returns the symbolic `Assignment` of symbolic inputs."""
        checks.check_floating(x)
        self.check_inputs_given(router_inputs)
        return self.assignment_spec(x.shape)

    def check_inputs_given(self, router_inputs: Tensor | None) -> None:
        """Check that router inputs are given if the router needs them.

        Layers around a router call it on symbolic inputs, so that a model
        without them cannot be made.

        Raises:
            ValueError: If they are missing, or given but not used.
        """
        router_checks.check_router_inputs_given(self, router_inputs)

    def assignment_spec(self, input_shape: Shape) -> Assignment:
        """Returns the symbolic `Assignment` for inputs of `(..., D)`."""
        tokens: int | None = 1
        for size in input_shape[:-1]:
            tokens = None if tokens is None or size is None else tokens * size
        per_token = self.pairs_per_token
        known = tokens is not None and per_token is not None
        pairs = tokens * per_token if known else None  # type: ignore[operator]

        def spec(shape, dtype):
            return keras.KerasTensor(shape, dtype)

        columns = self.num_experts + self.num_null_experts
        return Assignment(
            token_index=spec((pairs,), "int32"),
            expert_index=spec((pairs,), "int32"),
            combine_weights=spec((pairs,), "float32"),
            router_probs=spec((tokens, self.num_experts), "float32"),
            router_logits=spec((tokens, columns), "float32"),
            router_loss=spec((), "float32"),
        )

    def compute_mask(self, x, mask=None) -> None:
        """Returns None: the mask is in the `Assignment` already."""
        return None

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.arguments
        }
        return {**super().get_config(), **own}
