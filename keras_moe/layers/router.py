"""The learned token-choice router.

T tokens, D hidden_dim, E experts, K top_k, P = T * K routed pairs.
"""

import keras
from keras import ops

from keras_moe import routing
from keras_moe.layers import checks
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class Router(keras.layers.Layer):
    """Scores every expert for each token and sends it to the K best.

    One linear map from token to expert logits (Shazeer et al. 2017, eq. 2-3,
    without noise). It computes in float32 under every dtype policy: in half
    precision two experts' scores are often equal, and the choice arbitrary.

    Args:
        num_experts: E.
        top_k: K, experts a token is sent to, 1 to E. 1 (Switch) or 2 (Mixtral)
            for few experts, 8 for many small ones.
        scoring: `"softmax"` over all experts, then the K largest;
            `"topk_softmax"` over the K largest logits; `"sigmoid"`, each
            expert for itself. See `keras_moe.routing.top_k_assignment`.
        normalize_weights: whether a token's K weights are divided by their
            sum. With `top_k=1` that makes the weight a constant 1, from which
            a router cannot learn: pass False there (`MoEBlock` does).
        use_bias: whether the logits have a bias.
        jitter: float; in training the inputs are multiplied by noise drawn
            uniformly from `1 - jitter ... 1 + jitter` (Fedus et al. 2021,
            section 2.2). 0.01 is a start.
        kernel_initializer, bias_initializer: Keras initializers.
        kernel_regularizer: Keras regularizer.
        seed: int, for the jitter.
        **kwargs: of `keras.layers.Layer`.

    Weights: `kernel` `(D, E)`, `bias` `(E,)`, both float32.

    Call arguments:
        x: float `(..., D)`.
        mask: bool `(...)`, False for padding, which is sent nowhere.
        training: bool; jitter acts only in training.

    Returns:
        An `Assignment` of the flattened tokens; the pairs of token t stand at
        `t * K ... t * K + K-1`, its best expert first.

    Raises:
        ValueError: for an argument out of its range, an input of rank below
            2, of unknown width or of integers, or a mask that does not fit.
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        scoring: str = "softmax",
        normalize_weights: bool = True,
        use_bias: bool = False,
        jitter: float = 0.0,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.scoring = checks.check_choice("scoring", scoring, routing.SCORINGS)
        self.normalize_weights = normalize_weights
        self.use_bias = use_bias
        self.jitter = checks.check_rate("jitter", jitter)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def pairs_per_token(self) -> int:
        """K: the pairs of token t stand at `t * K ... t * K + K-1`."""
        return self.top_k

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.hidden_dim, self.num_experts),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            dtype="float32",
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.num_experts,),
                initializer=self.bias_initializer,
                dtype="float32",
                autocast=False,
            )

    def call(
        self, x: Tensor, mask: Tensor | None = None, training=None
    ) -> Assignment:
        """Routes tokens `(..., D)`; see the class."""
        tokens, token_mask = flatten_tokens(x, mask, self.hidden_dim)
        return routing.top_k_assignment(
            self._logits(tokens, training),
            self.top_k,
            self.scoring,
            self.normalize_weights,
            token_mask,
        )

    def _logits(self, tokens, training):
        tokens = ops.cast(tokens, "float32")
        if training and self.jitter > 0:
            tokens = tokens * keras.random.uniform(
                ops.shape(tokens),
                1.0 - self.jitter,
                1.0 + self.jitter,
                dtype="float32",
                seed=self.seed_generator,
            )
        logits = ops.matmul(tokens, self.kernel)
        return logits if self.bias is None else ops.add(logits, self.bias)

    def compute_output_shape(self, input_shape: Shape) -> Assignment:
        """Returns the shapes of the `Assignment` of inputs `(..., D)`."""
        spec = assignment_spec(
            input_shape, self.num_experts, self.pairs_per_token
        )
        return Assignment(*(field.shape for field in spec))

    def compute_output_spec(self, x, mask=None, training=None) -> Assignment:
        """Returns the symbolic `Assignment` of symbolic inputs."""
        checks.check_floating(x)
        return assignment_spec(x.shape, self.num_experts, self.pairs_per_token)

    def compute_mask(self, x, mask=None) -> None:
        """Returns None: the mask is in the `Assignment` already."""
        return None

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "top_k": self.top_k,
            "scoring": self.scoring,
            "normalize_weights": self.normalize_weights,
            "use_bias": self.use_bias,
            "jitter": self.jitter,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
            "kernel_regularizer": keras.regularizers.serialize(
                self.kernel_regularizer
            ),
            "seed": self.seed,
        }


def flatten_tokens(
    inputs: Tensor, mask: Tensor | None, hidden_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Returns inputs `(..., D)` as `(T, D)` and their mask as bool `(T,)`.

    Padding reads as zeros from here on: NaN there would reach the gradient of
    every weight that multiplies it, whatever is masked later.

    Raises:
        ValueError: where the inputs are integers or of another width, or the
            mask does not fit them.
    """
    checks.check_floating(inputs)
    checks.check_built_width(inputs, hidden_dim)
    tokens = ops.reshape(inputs, (-1, hidden_dim))
    if mask is None:
        return tokens, None
    mask = ops.convert_to_tensor(mask)
    checks.check_mask_shape(mask, inputs)
    token_mask = ops.cast(ops.reshape(mask, (-1,)), "bool")
    return zero_padding(tokens, token_mask), token_mask


def zero_padding(tokens: Tensor, token_mask: Tensor | None) -> Tensor:
    """Returns tokens `(T, D)` with zeros where the mask `(T,)` is False."""
    if token_mask is None:
        return tokens
    valid = ops.expand_dims(token_mask, -1)
    return ops.where(valid, tokens, ops.zeros_like(tokens))


def assignment_spec(
    input_shape: Shape, num_experts: int, pairs_per_token: int | None
) -> Assignment:
    """Returns the symbolic `Assignment` for inputs of `(..., D)`."""
    tokens: int | None = 1
    for size in input_shape[:-1]:
        tokens = None if tokens is None or size is None else tokens * size
    known = tokens is not None and pairs_per_token is not None
    pairs = tokens * pairs_per_token if known else None  # type: ignore[operator]

    def spec(shape, dtype):
        return keras.KerasTensor(shape, dtype)

    return Assignment(
        token_index=spec((pairs,), "int32"),
        expert_index=spec((pairs,), "int32"),
        combine_weights=spec((pairs,), "float32"),
        router_probs=spec((tokens, num_experts), "float32"),
        router_logits=spec((tokens, num_experts), "float32"),
    )
