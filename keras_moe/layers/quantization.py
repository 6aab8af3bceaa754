"""Save and restore how Keras's `model.quantize` changed a layer.

Keras stores the mode of a quantized layer in its dtype policy. A layer inside
a block has no config of its own in a saved model, only the `dtype` of the
block. So a block with quantized parts saves a map from paths to policies as its
`dtype`, Keras's `DTypePolicyMap`, and passes the map to the parts that it
builds. (The MultiHeadAttention of Keras 3.15 does not, and its quantized form
cannot be loaded.)
"""

import re
from typing import Any, Self

import keras
from keras import dtype_policies

from keras_moe import _keras
from keras_moe.kernels import Rounding

MODES = ("int8", "int4")


@keras.saving.register_keras_serializable(package="keras_moe")
class QuantizedPolicies(dtype_policies.DTypePolicyMap):
    """Maps paths to dtype policies, and to quantization configs.

    Args:
        default_policy: Policy of the paths that are not in the map, or its
            name.
        policy_map: Dict from a path, or a pattern of paths, to its policy.
        configs: Dict from the same keys to a `QuantizationConfig`. `None` (the
            default) is empty.
    """

    def __init__(
        self,
        default_policy: Any = None,
        policy_map: dict[str, Any] | None = None,
        configs: dict[str, keras.quantizers.QuantizationConfig] | None = None,
    ):
        super().__init__(default_policy, policy_map)
        self.configs = configs or {}

    def config_of(
        self, path: str
    ) -> keras.quantizers.QuantizationConfig | None:
        """Return the `QuantizationConfig` of a layer's path, or None."""
        for pattern, config in self.configs.items():
            if re.fullmatch(pattern, path):
                return config
        return None

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this map again."""
        configs = keras.saving.serialize_keras_object(self.configs)
        return {**super().get_config(), "configs": configs}

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the map that `get_config` describes."""
        named = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in ("policy_map", "configs")
        }
        return cls(**{**config, **named})


def saved_dtype(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the `dtype` of a layer's config, a map if parts are quantized."""
    policies, configs = {}, {}
    for part in _keras.layers_inside(layer):
        if part.quantization_mode is None:
            continue
        key = _pattern(layer, part)
        policies[key] = own_policy(part)
        config = getattr(part, "quantization_config", None)
        if config is not None:
            configs[key] = config
    policy = own_policy(layer)
    if policies:
        policy = QuantizedPolicies(policy.name, policies, configs)
    saved: dict[str, Any] = dtype_policies.serialize(policy)
    return saved


def float32_head(dtype: Any) -> Any:
    """Return the policy of a model's head: float32, or a map around float32.

    Args:
        dtype: `dtype` of the model: a policy, its config, its name, or None.
    """
    policies = dtype_policies.get(dtype)
    if not isinstance(policies, QuantizedPolicies):
        return "float32"
    return QuantizedPolicies("float32", dict(policies), policies.configs)


def restore_configs(layer: keras.layers.Layer) -> None:
    """Give Keras layers inside a loaded layer their quantization configs.

    Keras's own `DTypePolicyMap` does not store them.
    """
    policies = layer.dtype_policy
    if not isinstance(policies, QuantizedPolicies):
        return
    for part in _keras.layers_inside(layer):
        config = policies.config_of(part.path or "")
        if config is not None and part.quantization_mode in MODES:
            part.quantization_config = config
            part.inputs_quantizer = config.activation_quantizer


def own_policy(layer: keras.layers.Layer) -> dtype_policies.DTypePolicy:
    """Return the policy of a layer itself, also if its `dtype` is a map."""
    policy = layer.dtype_policy
    if not isinstance(policy, dtype_policies.DTypePolicyMap):
        return policy
    return policy[layer.path] if layer.path else policy.default_policy


def given_config(
    layer: keras.layers.Layer,
) -> keras.quantizers.QuantizationConfig | None:
    """Return the `QuantizationConfig` of a layer in its map, or None."""
    policy = layer.dtype_policy
    known = isinstance(policy, QuantizedPolicies)
    return policy.config_of(layer.path) if known else None


def set_policy(layer: keras.layers.Layer, mode: str, block: int | None) -> None:
    """Record in a layer's dtype policy how it was quantized, as Keras does."""
    if layer.quantization_mode is not None:  # recorded already
        return
    name = own_policy(layer).name
    how = mode if mode == "int8" else f"{mode}/{block or -1}"
    layer.dtype_policy = dtype_policies.get(f"{how}_from_{name}")


def block_size_of(
    layer: keras.layers.Layer,
    config: keras.quantizers.QuantizationConfig | None,
) -> int | None:
    """Return how many rows share a scale, or None for all of a channel."""
    if config is None:
        config = own_policy(layer)
    block = getattr(config, "block_size", None)
    return None if block == -1 else block


def default_rounding(mode: str) -> Rounding | None:
    """Return how Keras rounds activations if there is no config."""
    return Rounding() if mode == "int8" else None


def check_mode(mode: str | None) -> str:
    """Return `mode` if experts can be quantized in this mode."""
    if mode in MODES:
        return str(mode)
    raise ValueError(
        f"`mode` must be one of {MODES} if there are experts. "
        f"{_REASONS.get(str(mode), '')} Received: mode={mode!r}. Load the "
        "model again and exclude the experts with `filters=lambda layer: not "
        "isinstance(layer, keras_moe.Expert)`, or choose another mode."
    )


class KeptInFloats:
    """Base class of layers that `model.quantize` silently leaves in float32.

    Routers stay in float32, because quantizing them would change routing
    decisions, and so do layers whose few weights are not multiplied with
    tokens. This class comes before `keras.layers.Layer` in the list of bases.
    """

    def quantize(
        self,
        mode: str | None = None,
        type_check: bool = True,
        config: keras.quantizers.QuantizationConfig | None = None,
    ) -> None:
        """Leave the layer unchanged; see the class."""


def keep_floats(parts: Any) -> None:
    """Exclude layers, and the layers inside them, from `model.quantize`.

    Args:
        parts: Layer, or nest of layers and other values.
    """
    for part in keras.tree.flatten(parts):
        if isinstance(part, keras.layers.Layer):
            for layer in _keras.every_layer_of(part):
                layer.quantize = KeptInFloats().quantize


def check_floats(experts: keras.layers.Layer) -> None:
    """Raise if the experts are quantized."""
    if experts.quantization_mode is None:
        return
    raise ValueError(
        "The experts must have float kernels to be initialized from a source. "
        f"Received: experts of dtype {own_policy(experts).name!r}. Initialize "
        "them first and quantize them at the end."
    )


_CALIBRATED = (
    "Keras calibrates only keras.layers.Dense and EinsumDense of rank 2 and 3 "
    "and skips other layers."
)
_REASONS = {
    "float8": "Keras's float8 rounds float32 weights in each step, with one "
    "scale per kernel: stacked experts would share one scale, and each step "
    "would copy all experts.",
    "gptq": _CALIBRATED,
    "awq": _CALIBRATED,
}


def _pattern(layer: keras.layers.Layer, part: keras.layers.Layer) -> str:
    """Return a pattern of the path of a part, wherever its layer is used."""
    path: str = part.path or part.name
    prefix = f"{layer.path}/"
    if not layer.path or not path.startswith(prefix):
        return re.escape(path)
    return f"(.*/)?{re.escape(f'{layer.name}/{path[len(prefix) :]}')}"
