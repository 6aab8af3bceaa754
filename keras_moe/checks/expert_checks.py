"""Check the arguments of `Expert` and of its calls.

E experts.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_moe import checks
from keras_moe.types import Activation, GatedUnit, Shape, Tensor

# The arguments that all experts of a layer share, each with its check.
STYLE: dict[str, Callable[[str, Any], Any]] = {
    "intermediate_dim": checks.check_positive_int,
    "output_dim": checks.check_optional_int,
    "activation": lambda _, value: checks.check_activation(value),
    "gated": checks.check_bool,
    "use_bias": checks.check_bool,
    "dropout": checks.check_rate,
    "kernel_initializer": checks.check_initializer,
    "bias_initializer": checks.check_initializer,
    "kernel_regularizer": checks.check_regularizer,
    "bias_regularizer": checks.check_regularizer,
    "kernel_constraint": checks.check_constraint,
    "bias_constraint": checks.check_constraint,
}


def checked_style(**style: Any) -> dict[str, Any]:
    """Return arguments of STYLE, checked and as Keras objects.

    Args:
        **style: Some or all of the arguments that STYLE names.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return {name: STYLE[name](name, value) for name, value in style.items()}


def set_style(layer: keras.layers.Layer, **style: Any) -> None:
    """Check arguments of STYLE, and set them as attributes of a layer."""
    checked = checked_style(**style)
    check_gated(checked["activation"], checked["gated"])
    for name, value in checked.items():
        setattr(layer, name, value)


def check_gated(activation: Activation, gated: bool) -> None:
    """Raise if an activation needs a gate, and there is none."""
    if gated or not isinstance(activation, GatedUnit):
        return
    raise ValueError(
        "`gated` must be True if `activation` is a GatedUnit: it is a function "
        f"of gate and up. Received: gated=False, activation={activation!r}. "
        "Pass gated=True, or another activation."
    )


def check_quantization_config(config: Any) -> Any:
    """Return `config` if it is None or a Keras `QuantizationConfig`."""
    return checks.check_is_a(
        "quantization_config",
        config,
        (keras.quantizers.QuantizationConfig, type(None)),
        "None or a Keras quantization config",
        "Call `quantize` of the built layer, and leave it out here.",
    )


def check_width(hidden_dim: int | None, input_shape: Shape) -> None:
    """Raise if the width of the inputs is not the given `hidden_dim`."""
    if hidden_dim in (None, input_shape[-1]):
        return
    raise ValueError(
        "`hidden_dim` must be the last dimension of the inputs. Received: "
        f"hidden_dim={hidden_dim}, inputs of shape {tuple(input_shape)}. "
        "Leave `hidden_dim` out to take it from the inputs."
    )


def check_group_sizes(group_sizes: Tensor, num_experts: int) -> None:
    """Raise if `group_sizes` is not `(E,)`."""
    if tuple(group_sizes.shape) == (num_experts,):
        return
    raise ValueError(
        f"`group_sizes` must have the shape ({num_experts},), one count per "
        f"expert. Received: shape {tuple(group_sizes.shape)}. Count the rows "
        "of each expert, including experts without rows."
    )


def check_only_expert(num_experts: int) -> None:
    """Raise if E is not 1, for a call without `group_sizes`."""
    if num_experts == 1:
        return
    raise ValueError(
        "`group_sizes` must be given if there is more than one expert: it "
        "assigns rows to experts. Received: group_sizes=None, num_experts="
        f"{num_experts}. Pass int32 (E,) counts, or put the layer into "
        "MoEBlock(experts=...)."
    )


def check_whole(experts: Any) -> None:
    """Raise if a bank that is to be saved holds only some of its experts."""
    if experts.shard is None:
        return
    raise RuntimeError(
        f"{experts.name!r} must hold all its experts to be saved. Received: "
        f"some of the {experts.num_experts}; the others are in other "
        "processes. Call `save` of the model that was passed to "
        "`shard_experts` in every process, or call "
        "keras_moe.distribution.gather_experts(model) first."
    )


def check_output_shape(block: Any, rows_shape: Shape) -> None:
    """Raise if the experts of a block change the shape of their rows.

    Args:
        block: A layer whose `experts` are built.
        rows_shape: `(None, D)`, or `(None, ..., D)` for whole examples.
    """
    rows = keras.KerasTensor(rows_shape, block.compute_dtype)
    sizes = keras.KerasTensor((block.num_experts,), "int32")
    outputs = block.experts.compute_output_spec(rows, group_sizes=sizes)
    shape = getattr(outputs, "shape", None)
    if not checks.is_same_shape(shape, rows.shape):
        raise changed_shape(rows.shape, outputs if shape is None else shape)


def changed_shape(rows_shape: Shape, shape: Any) -> ValueError:
    """Return the error for experts that change the shape of their rows."""
    return ValueError(
        "`experts` of a block must give outputs of the shape of their inputs, "
        f"(rows, ..., hidden_dim). Received: inputs of shape "
        f"{tuple(rows_shape)}, outputs of shape {shape}. Pad convolutions with "
        "padding='same', leave `output_dim` out, and put a layer that changes "
        "the shape after the block."
    )
