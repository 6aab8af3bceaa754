"""Find the mixtures of a model, and check that they can be changed.

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
    """Return the mixtures of a model, all of a kind that can be changed.

    Raises:
        ValueError: If `model` is no built Keras model; if it has no mixture; or
            if a mixture is of another class, shares its router or experts with
            another layer, or is quantized.
    """
    check_model(model)
    blocks = find_blocks(model)
    for block in blocks:
        _check_block(block, model)
    return blocks


def check_model(model: keras.Model) -> None:
    """Raise if `model` is no built Keras model."""
    if isinstance(model, keras.Model) and model.built:
        return
    raise ValueError(
        "`model` must be a built Keras model. Received: "
        f"{getattr(model, 'name', model)!r}. Wrap a layer in keras.Model or "
        "keras.Sequential, and call a subclassed model once."
    )


def _check_block(block: Mixture, model: keras.Model) -> None:
    if not isinstance(block, (MoEBlock, MixtureOfModels)):
        raise ValueError(
            "`model` must hold its experts in MoEBlock, HierarchicalMoE, or "
            f"MixtureOfModels. Received: {type(block).__name__} "
            f"{block.name!r}, whose arguments are not known. Use one of these "
            "classes."
        )
    check_parts([block, *_keras.layers_inside(block)], model)


def check_parts(layers: list[keras.layers.Layer], model: keras.Model) -> None:
    """Raise if a layer is inside several layers of the model, or quantized."""
    holders = _keras.every_layer_of(model)
    for layer in layers:
        if sharing.is_shared(layer, holders):
            raise ValueError(
                "`model` must have a router and experts of its own for each "
                "block: an expert that one block can spare may be needed by "
                f"another. Received: {layer.path!r}, which is inside several "
                "layers. Build the model without shared parts."
            )
        if layer.quantization_mode:
            raise ValueError(
                "`model` must not be quantized yet. Received: "
                f"{layer.path!r} in {layer.quantization_mode}. Compress first, "
                "fine-tune, and quantize last."
            )


def check_banks(blocks: list[Mixture], what: str) -> None:
    """Raise if experts are layers of any kind, without common weights.

    Args:
        blocks: Mixtures of the model.
        what: str. Name of the public function that needs `Expert` banks.
    """
    for block in blocks:
        if not isinstance(block.experts, Expert):
            raise ValueError(
                f"`{what}` needs experts in an `Expert` bank, whose weights "
                f"can be compared. Received: {block.path!r} with "
                f"{type(block.experts).__name__}. Use `prune_experts`, which "
                "takes layers of any kind."
            )


def model_of_arguments(
    model: keras.Model, block: Mixture
) -> keras.Model | None:
    """Return the part of a model that builds a block from its own arguments.

    The models of `keras_moe.models` do. It is None if there is no such part.
    """
    for part in _keras.every_layer_of(model):
        if any(block is x for x in getattr(part, "moe_blocks", ())):
            return part
    return None


def models_of_arguments(
    model: keras.Model, blocks: list[Mixture]
) -> list[keras.Model]:
    """Return the `model_of_arguments` of all blocks, each once."""
    found = [model_of_arguments(model, block) for block in blocks]
    return list({id(x): x for x in found if x is not None}.values())


def count_kept(keep: Any, num_experts: int) -> int:
    """Return how many of E experts are kept.

    Args:
        keep: int in 1 ... E, or float in 0 < keep <= 1. A fraction of E is
            rounded, to 1 at least.
        num_experts: Positive int. E.

    Raises:
        ValueError: If `keep` is neither.
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
    """Return bool `(E,)`, False for experts that are disabled."""
    enabled = np.ones(block.num_experts, "bool")
    enabled[block.router.disabled_experts] = False
    return enabled


def reset_statistics(changes: Changes, block: Mixture) -> None:
    """Leave the load statistics of the new block empty."""
    changes.transfer(block.statistics, lambda old, new: None)


def layers_of_bank(block: Mixture) -> list[keras.layers.Layer] | None:
    """Return the experts if they are layers of any kind, else None."""
    bank = block.experts
    return bank.layers if isinstance(bank, ExpertLayers) else None
