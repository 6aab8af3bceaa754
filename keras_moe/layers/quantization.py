"""What Keras's `model.quantize` has made of a layer, and how it is saved.

Keras keeps a quantised layer's mode in its dtype policy. A layer inside a
block has no config of its own in a saved model; the block's `dtype` stands
for it. So a block with quantised parts saves a map from paths to policies as
its `dtype`, Keras's `DTypePolicyMap`, which it hands on to the parts it
builds. (Keras's own MultiHeadAttention, at 3.15, does not, and its quantised
form cannot be loaded.)
"""

import re
from typing import Any

import keras
from keras import dtype_policies

from keras_moe import _keras
from keras_moe.kernels import Rounding

MODES = ("int8", "int4")


@keras.saving.register_keras_serializable(package="keras_moe")
class QuantizedPolicies(dtype_policies.DTypePolicyMap):
    """A map from paths to policies that keeps the layers' configs, too.

    Args:
        default_policy: of a path that is not in the map.
        policy_map: dict from a path, or a pattern of paths, to its policy.
        configs: dict from the same keys to a `QuantizationConfig`.
    """

    def __init__(self, default_policy=None, policy_map=None, configs=None):
        super().__init__(default_policy, policy_map)
        self.configs = configs or {}

    def config_of(self, path: str):
        """Returns the `QuantizationConfig` of a layer's path, or None."""
        for pattern, config in self.configs.items():
            if re.fullmatch(pattern, path):
                return config
        return None

    def get_config(self) -> dict:
        """Returns the arguments that build this map again."""
        configs = keras.saving.serialize_keras_object(self.configs)
        return {**super().get_config(), "configs": configs}

    @classmethod
    def from_config(cls, config: dict, custom_objects=None):
        """Builds the map that `get_config` describes."""
        named = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in ("policy_map", "configs")
        }
        return cls(**{**config, **named})


def saved_dtype(layer: keras.layers.Layer) -> dict:
    """Returns the `dtype` of a layer's config; a map where parts of it are
    quantised."""
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
    return dtype_policies.serialize(policy)


def float32_head(dtype):
    """Returns the policy of a model's head, float32; or what a loaded model
    says of it.

    Args:
        dtype: of the model: a policy, its config or its name, or None.
    """
    policies = dtype_policies.get(dtype)
    if not isinstance(policies, QuantizedPolicies):
        return "float32"
    return QuantizedPolicies("float32", dict(policies), policies.configs)


def restore_configs(layer: keras.layers.Layer) -> None:
    """Gives Keras's layers inside a loaded one the configs they had: their
    own form has no place for them in a map of policies."""
    policies = layer.dtype_policy
    if not isinstance(policies, QuantizedPolicies):
        return
    for part in _keras.layers_inside(layer):
        config = policies.config_of(part.path or "")
        if config is not None and part.quantization_mode in MODES:
            part.quantization_config = config
            part.inputs_quantizer = config.activation_quantizer


def own_policy(layer: keras.layers.Layer):
    """Returns the policy of a layer itself, where it has a map of them."""
    policy = layer.dtype_policy
    if not isinstance(policy, dtype_policies.DTypePolicyMap):
        return policy
    return policy[layer.path] if layer.path else policy.default_policy


def given_config(layer: keras.layers.Layer):
    """Returns the `QuantizationConfig` that a map has for a layer."""
    policy = layer.dtype_policy
    known = isinstance(policy, QuantizedPolicies)
    return policy.config_of(layer.path) if known else None


def set_policy(layer, mode: str, block: int | None) -> None:
    """Says in a layer's dtype policy how it was quantised, as Keras does."""
    if layer.quantization_mode is not None:  # quantised by its policy
        return
    name = own_policy(layer).name
    how = mode if mode == "int8" else f"{mode}/{block or -1}"
    layer.dtype_policy = dtype_policies.get(f"{how}_from_{name}")


def block_size_of(layer, config) -> int | None:
    """Returns the rows that share a scale, or None for all of a channel."""
    if config is None:
        config = own_policy(layer)
    block = getattr(config, "block_size", None)
    return None if block == -1 else block


def default_rounding(mode: str) -> Rounding | None:
    """Returns what Keras does to activations where there is no config."""
    return Rounding() if mode == "int8" else None


def check_mode(mode: str) -> None:
    """Raises where experts cannot be quantised so."""
    if mode in MODES:
        return
    raise ValueError(
        f"`mode` must be one of {MODES} where there are experts. "
        f"{_REASONS.get(mode, '')} Received: mode={mode!r}. Load the model "
        "anew and leave the experts as they are, with `filters=lambda layer: "
        "not isinstance(layer, keras_moe.Expert)`, or choose another mode."
    )


class KeptInFloats:
    """Base of layers that `model.quantize` leaves in float32, silently.

    Routers, because rounding would change routing decisions, and layers whose
    few weights are not multiplied with tokens. It comes before
    `keras.layers.Layer` in the list of bases.
    """

    def quantize(self, mode=None, type_check=True, config=None) -> None:
        """Leave the layer unchanged; see the class."""


def keep_floats(parts: Any) -> None:
    """Keep `model.quantize` from layers, and from those inside of them.

    Args:
        parts: Layer, or nest with layers in it.
    """
    for part in keras.tree.flatten(parts):
        if isinstance(part, keras.layers.Layer):
            for layer in _keras.every_layer_of(part):
                layer.quantize = KeptInFloats().quantize


def check_floats(experts) -> None:
    """Raises where a bank's kernels are integers."""
    if experts.quantization_mode is None:
        return
    raise ValueError(
        "The experts must have kernels of floats to start from others. "
        f"Received: experts of dtype {own_policy(experts).name!r}. Start them "
        "first and quantise them at the end."
    )


_CALIBRATED = (
    "Keras calibrates keras.layers.Dense and EinsumDense of rank 2 and 3 "
    "alone, by their class; other layers are passed over."
)
_REASONS = {
    "float8": "Keras's float8 rounds float32 weights anew in each step, with "
    "one scale for a whole kernel: of stacked experts that would be one scale "
    "for all, and a copy of the whole bank.",
    "gptq": _CALIBRATED,
    "awq": _CALIBRATED,
}


def _pattern(layer, part):
    """The path of a part below a layer, wherever that layer stands."""
    path, prefix = part.path or part.name, f"{layer.path}/"
    if not layer.path or not path.startswith(prefix):
        return re.escape(path)
    return f"(.*/)?{re.escape(f'{layer.name}/{path[len(prefix) :]}')}"
