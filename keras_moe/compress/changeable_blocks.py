"""Which mixtures a model has, whether they can be changed, and by how much.

D hidden_dim, E experts, K top_k, G groups.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import _keras
from keras_moe.checks import as_number
from keras_moe.layers import (
    Expert,
    ExpertLayers,
    MixtureOfModels,
    MoEBlock,
    sharing,
)
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import find_blocks
from keras_moe.model_surgery.rebuild import Changes


def changeable_blocks(model: keras.Model) -> list[Mixture]:
    """Returns the mixtures of a model, all of a kind that can be changed.

    Raises:
        ValueError: for what is no model, or is not built; where there is no
            mixture, one of a subclass of the user's, one that shares its
            router or experts with another, or experts that are quantised.
    """
    check_model(model)
    blocks = find_blocks(model)
    for block in blocks:
        _check_block(block, model)
    return blocks


def check_model(model: keras.Model) -> None:
    """Raises where `model` is no built Keras model."""
    if isinstance(model, keras.Model) and model.built:
        return
    raise ValueError(
        "`model` must be a built Keras model. Received: "
        f"{getattr(model, 'name', model)!r}. Wrap a layer in keras.Model or "
        "keras.Sequential, and call a subclassed model once."
    )


def _check_block(block, model):
    if not isinstance(block, (MoEBlock, MixtureOfModels)):
        raise ValueError(
            "`model` must hold its experts in MoEBlock, HierarchicalMoE or "
            f"MixtureOfModels. Received: {type(block).__name__} "
            f"{block.name!r}, of which nobody knows how it is built. Use one "
            "of these."
        )
    check_parts([block, *_keras.layers_inside(block)], model)


def check_parts(layers: list[keras.layers.Layer], model: keras.Model) -> None:
    """Raises if a layer stands in several of the model's, or is quantized."""
    holders = _keras.every_layer_of(model)
    for layer in layers:
        if sharing.is_shared(layer, holders):
            raise ValueError(
                "`model` must have a router and experts for each block alone: "
                "what one block can spare, another needs. Received: "
                f"{layer.path!r}, which stands in several layers. Build the "
                "model with parts of its own for each block."
            )
        if layer.quantization_mode:
            raise ValueError(
                "`model` must not be quantised yet. Received: "
                f"{layer.path!r} in {layer.quantization_mode}. Compress first, "
                "fine-tune, and quantise last."
            )


def check_banks(blocks: list[Mixture], what: str) -> None:
    """Raises where experts are layers of any kind, which have no common
    weights.

    Args:
        blocks: of the model.
        what: of the public function that asks.
    """
    for block in blocks:
        if not isinstance(block.experts, Expert):
            raise ValueError(
                f"`{what}` needs experts in an `Expert` bank: networks of one "
                f"kind, whose weights can be compared. Received: {block.path!r}"
                f" with {type(block.experts).__name__}. `prune_experts` takes "
                "layers of any kind."
            )


def model_of_arguments(model: keras.Model, block: Mixture):
    """Returns the part of a model that builds `block` from arguments of its
    own, such as those of `keras_moe.models`; None where there is none."""
    for part in _keras.every_layer_of(model):
        if any(block is x for x in getattr(part, "moe_blocks", ())):
            return part
    return None


def models_of_arguments(model: keras.Model, blocks: list[Mixture]) -> list:
    """Returns those models, each once."""
    found = [model_of_arguments(model, block) for block in blocks]
    return list({id(x): x for x in found if x is not None}.values())


def count_kept(keep: Any, num_experts: int) -> int:
    """Returns how many of E experts stay.

    Args:
        keep: int 1 ... E, or a fraction in 0 < keep <= 1, rounded, 1 at least.
        num_experts: E.

    Raises:
        ValueError: for anything else.
    """
    number = as_number(keep)
    if isinstance(number, float) and 0 < number <= 1:
        return max(1, round(number * num_experts))
    if isinstance(number, int) and 1 <= number <= num_experts:
        return number
    raise ValueError(
        "`keep` must be an integer in 1 ... num_experts or a fraction in 0 < "
        f"keep <= 1. Received: keep={keep!r}, num_experts={num_experts}. Pass "
        "keep=0.5 for half of the experts."
    )


def enabled_experts(block: Mixture) -> np.ndarray:
    """Returns which experts are switched on, bool `(E,)`."""
    enabled = np.ones(block.num_experts, "bool")
    enabled[block.router.disabled_experts] = False
    return enabled


def start_statistics_anew(changes: Changes, block: Mixture) -> None:
    """Leaves the new block's load empty: it is that of no training."""
    changes.transfer(block.statistics, lambda old, new: None)


def layers_of_bank(block: Mixture) -> list | None:
    """Returns the experts where they are layers of any kind, else None."""
    bank = block.experts
    return bank.layers if isinstance(bank, ExpertLayers) else None
