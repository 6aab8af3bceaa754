"""Describe the mixtures of a model and count its parameters.

E experts, K top_k.
"""

import math
import re
from typing import Any

import keras

from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import blocks_of, paths_of


def describe(model: keras.Model) -> dict[str, Any]:
    """Describe the mixtures of a model and count its parameters.

    Args:
        model: A built `keras.Model`.

    Returns:
        A dict of `parameters`, `active_parameters` (those that one token uses:
        K of the E experts of each block, and everything outside of experts),
        `parameter_bytes`, and `mixtures`, a list of one dict per block:
        `path`, `class`, `router`, `num_experts`, `top_k`, `capacity_factor`,
        `eval_capacity_factor`, `expert_parameters` (of all E experts), and
        `expert_bytes`.

    Example:

    ```python
    inputs = keras.Input((5, 16))
    outputs = keras_moe.MoEBlock(4, intermediate_dim=32, top_k=1)(inputs)
    about = keras_moe.export.describe(keras.Model(inputs, outputs))
    print(about["active_parameters"], "of", about["parameters"])
    ```
    """
    blocks = blocks_of(model)
    mixtures = list(map(_describe_block, paths_of(blocks), blocks))
    parameters = _parameters(model)
    idle = sum(
        m["expert_parameters"]
        * (m["num_experts"] - m["top_k"])
        // m["num_experts"]
        for m in mixtures
    )
    return {
        "parameters": parameters,
        "active_parameters": int(parameters - idle),
        "parameter_bytes": _bytes(model),
        "mixtures": mixtures,
    }


def _describe_block(path: str, block: Mixture) -> dict[str, Any]:
    return {
        "path": path,
        "class": type(block).__name__,
        "router": type(block.router).__name__,
        "num_experts": block.num_experts,
        "top_k": min(block.router.top_k, block.num_experts),
        "capacity_factor": block.capacity_factor,
        "eval_capacity_factor": block.eval_capacity_factor,
        "expert_parameters": _parameters(block.experts),
        "expert_bytes": _bytes(block.experts),
    }


def _parameters(layer: keras.layers.Layer) -> int:
    """Count the parameters of a layer like `model.summary()`."""
    return sum(math.prod(w.shape) for w in layer.weights)


def _bytes(layer: keras.layers.Layer) -> int:
    return sum(math.prod(w.shape) * _size_of(w.dtype) for w in layer.weights)


def _size_of(dtype: str) -> int:
    """Return the bytes of one number, from the bits in the dtype's name."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits[0]) // 8 if bits else 1
