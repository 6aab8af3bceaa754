"""What arguments must be, said in one form: the argument in backticks, the
rule, what was received, the remedy."""

import keras

from keras_moe.types import Activation, Shape, Tensor


def check_positive_int(name: str, value: object) -> int:
    """Returns `value` where it is an integer above 0."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value > 0:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise ValueError(
        f"`{name}` must be an integer above 0. Received: {name}={value!r}. "
        f"Pass, for instance, {name}=2."
    )


def check_bool(name: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if isinstance(value, bool):
        return value
    raise ValueError(
        f"`{name}` must be True or False. Received: {name}={value!r}. Pass "
        "the bool itself, not a string or a number."
    )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value` where it is one of `choices`."""
    if value in choices:
        return value
    raise ValueError(
        f"`{name}` must be one of {choices}. Received: {name}={value!r}. "
        f"The default is {choices[0]!r}."
    )


def check_rate(name: str, value: float) -> float:
    """Returns `value` where it is a number in 0 <= value < 1."""
    if _is_number(value) and 0 <= value < 1:
        return value
    raise ValueError(
        f"`{name}` must be a number in 0 <= {name} < 1. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_remat(remat: bool, dropout: float) -> bool:
    """Returns `remat` where it goes with `dropout`."""
    if not (remat and dropout):
        return remat
    raise ValueError(
        "`remat` must be False where there is dropout: the units would be "
        "dropped anew when they are computed again. Received: "
        f"remat={remat!r}, dropout={dropout!r}. Set one of them to 0."
    )


def check_weight(name: str, value: float) -> float:
    """Returns `value` where it is a finite number, 0 or above."""
    if _is_number(value) and 0 <= value < float("inf"):
        return value
    raise ValueError(
        f"`{name}` must be a finite number, 0 or above. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_capacity_factor(name: str, value: float | None) -> float | None:
    """Returns `value` where it is None or a finite number above 0."""
    if value is None or (_is_number(value) and 0 < value < float("inf")):
        return value
    raise ValueError(
        f"`{name}` must be None (no token is dropped) or a finite number above "
        f"0. Received: {name}={value!r}. 1.25 is a common start."
    )


def check_above(name: str, value: float, low: float, high: float) -> float:
    """Returns `value` where it is a number in low < value <= high."""
    if _is_number(value) and low < value <= high and value < float("inf"):
        return value
    raise ValueError(
        f"`{name}` must be a finite number in {low} < {name} <= {high}. "
        f"Received: {name}={value!r}. Choose one inside."
    )


def check_count(name: str, value: object) -> int:
    """Returns `value` where it is an integer, 0 or above."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value >= 0:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise ValueError(
        f"`{name}` must be an integer, 0 or above. Received: {name}={value!r}. "
        "Pass 0 for none."
    )


def check_top_k(top_k: int, num_experts: int) -> int:
    """Returns `top_k` where it is 1 ... num_experts."""
    check_positive_int("top_k", top_k)
    if top_k <= num_experts:
        return top_k
    raise ValueError(
        "`top_k` must be at most `num_experts`: a token's experts are "
        f"distinct. Received: top_k={top_k}, num_experts={num_experts}. Lower "
        "`top_k` or raise `num_experts`."
    )


def check_activation(activation: object) -> Activation:
    """Returns the Keras activation that `activation` names."""
    try:
        return keras.activations.get(activation)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`activation` must be a name in keras.activations or a function. "
            f"Received: activation={activation!r}. Try 'relu', 'gelu' or "
            "'silu'."
        ) from error


def check_input_shape(shape: Shape) -> int:
    """Returns the last dimension of `(..., D)` where D is known."""
    if len(shape) < 2:
        raise ValueError(
            "`inputs` must have rank 2 or more, (..., hidden_dim). Received: "
            f"shape {tuple(shape)}. Add a batch axis."
        )
    if shape[-1] is None:
        raise ValueError(
            "`inputs` must have a known last dimension: it sizes the weights. "
            f"Received: shape {tuple(shape)}. Give the model's Input a fixed "
            "last dimension."
        )
    return shape[-1]


def check_built_width(inputs: Tensor, hidden_dim: int | None) -> None:
    """Raises where the last dimension is not the one the layer has."""
    if inputs.shape[-1] != hidden_dim:
        raise ValueError(
            f"`inputs` must have {hidden_dim} as last dimension, the one this "
            f"layer was built with. Received: shape {tuple(inputs.shape)}. "
            "Project the inputs to that width or build another layer."
        )


def check_floating(inputs: Tensor) -> None:
    """Raises where the inputs are not floating-point numbers."""
    if getattr(inputs.dtype, "is_floating_point", False):  # PyTorch's knows
        return
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"`inputs` must be floating-point. Received: dtype {dtype}. Embed "
            "token ids with keras.layers.Embedding, or cast the inputs."
        )


def check_mask_shape(mask: Tensor, inputs: Tensor) -> None:
    """Raises where a mask `(...)` does not fit inputs `(..., D)`."""
    expected, received = tuple(inputs.shape[:-1]), tuple(mask.shape)
    fits = len(expected) == len(received) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(expected, received, strict=True)
    )
    if not fits:
        raise ValueError(
            "`mask` must have the shape of `inputs` without its last axis: one "
            f"bool a token. Received: mask of shape {received}, inputs of "
            f"shape {tuple(inputs.shape)}. Pass a mask of shape {expected}."
        )


def check_sequence_length(shape: Shape):
    """Returns the axis before the last of `(..., S, D)`, rank 3 or more."""
    if len(shape) >= 3:
        return shape[-2]
    raise ValueError(
        "`load_balancing` must not be 'per_sequence' for inputs of rank 2, "
        f"which have no sequences. Received: inputs of shape {tuple(shape)}. "
        "Pass (batch, sequence, hidden_dim), or load_balancing='switch'."
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_distribution() -> None:
    """Raises where `keras.distribution` is set and the backend ignores it."""
    backend = keras.backend.backend()
    if backend == "jax" or keras.distribution.distribution() is None:
        return
    raise RuntimeError(
        "`keras.distribution.set_distribution` must be left out on a backend "
        "that ignores it: everything would be on one device, and nothing "
        f"would say so. Received: KERAS_BACKEND={backend}. Use JAX; or "
        "keras_moe.distribution.data_parallel, on TensorFlow in the scope of "
        "a tf.distribute strategy, on PyTorch under keras-moe launch or "
        "torchrun."
    )
