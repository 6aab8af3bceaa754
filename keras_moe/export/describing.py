"""What a model is made of: its mixtures, and the parameters of one token.

E experts, K top_k.
"""

import math
import re

import keras

from keras_moe.model_surgery.find import blocks_of, paths_of


def describe(model: keras.Model) -> dict:
    """Return what a model's mixtures are, and which part a token passes.

    Args:
        model: A built `keras.Model`.

    Returns:
        `parameters`, `active_parameters` (a token's: K of each block's E
        experts, and all that is not an expert), `parameter_bytes`, and
        `mixtures`, one dict per block: `path`, `class`, `router`,
        `num_experts`, `top_k`, `capacity_factor`, `eval_capacity_factor`,
        `expert_parameters` (of all E), and `expert_bytes`.
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


def _describe_block(path, block):
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


def _parameters(layer):
    """Counted as `model.summary()` does."""
    return sum(math.prod(w.shape) for w in layer.weights)


def _bytes(layer):
    return sum(math.prod(w.shape) * _size_of(w.dtype) for w in layer.weights)


def _size_of(dtype):
    """Bytes of one number: the first number in a dtype's name are its bits."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits[0]) // 8 if bits else 1
