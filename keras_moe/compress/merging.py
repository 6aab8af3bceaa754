"""Merge experts that do nearly the same.

E experts, M merged experts, R tokens.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import checks
from keras_moe.compress import averaging
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.banks import outputs_of, read_experts, write_experts
from keras_moe.compress.merged_router import MergedRouter
from keras_moe.compress.recording import Record, observe
from keras_moe.layers import BaseRouter, Expert, MoEBlock
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import (
    REPLACEMENT,
    Changes,
    Config,
    assign,
    move_weights,
    rebuild,
)

SIMILARITIES = ("output", "router_logits")


def merge_experts(
    model: keras.Model,
    keep: int | float,
    data: Any = None,
    by: str = "output",
) -> keras.Model:
    """Return a smaller model in which similar experts are merged.

    In every `MoEBlock` and `HierarchicalMoE` with an `Expert` bank, experts are
    clustered by their similarity on `data`, their hidden units are put in one
    order, and each cluster is replaced by the mean of its members' weights,
    weighted by their numbers of tokens. Experts that are equal up to the order
    of their hidden units merge exactly.

    The router keeps its E columns: a `MergedRouter` around it sends the pairs
    of each column to its merged expert. A token's pairs and weights are
    therefore those of the trained model, which a router with M columns could
    not reproduce.

    The new model is not compiled, the optimizer's state is not carried over,
    and load statistics are empty. A `HierarchicalMoE` becomes a `MoEBlock` with
    the same router.

    Reference: Li et al. 2024, "Merge, Then Compress" (M-SMoE), which forms
    groups around the most used experts, by router logits.

    Args:
        model: Built model. It does not change.
        keep: int in 1 ... E, or float in 0 < keep <= 1. M, the number of
            experts of each block, or a fraction of E.
        data: Inputs as `prune_experts` takes them, required. A few hundred
            training examples are enough.
        by: str. Similarity of experts. `"output"` (the default) is the distance
            of their outputs for the same tokens, relative to the mean norm;
            `"router_logits"` is the cosine of their router logits, as in the
            paper.

    Returns:
        A model with M experts in each block.

    Raises:
        ValueError: If an argument is out of its range; if `data` is None; if
            experts are not in an `Expert` bank, are shared, or are quantized;
            if the model is merged already; or if it has several blocks, one of
            which has a router that reads another's logits.
        ImportError: If SciPy is not installed and experts are merged.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    x = np.random.normal(size=(200, 16))
    smaller = keras_moe.compress.merge_experts(model, keep=2, data=x)
    ```
    """
    checks.check_choice("by", by, SIMILARITIES)
    blocks = mixtures.changeable_blocks(model)
    mixtures.check_banks(blocks, "merge_experts")
    counts = [mixtures.count_kept(keep, b.num_experts) for b in blocks]
    _check_routers(blocks)
    if data is None:
        raise ValueError(
            "`data` must be given: experts are compared on it. Received: "
            "data=None. Pass a few hundred training inputs."
        )
    records = observe(model, blocks, data)
    changes = Changes()
    for block, count in zip(blocks, counts, strict=True):
        record = records[id(block)]
        groups = averaging.cluster(_distances(block, record, by), count)
        _change_block(changes, block, groups, record.pairs)
    for part in mixtures.models_of_arguments(model, blocks):
        _change_model(changes, part, counts[blocks.index(part.moe_blocks[0])])
    return rebuild(model, changes)


def _check_routers(blocks: list[Mixture]) -> None:
    for block in blocks:
        if isinstance(block.router, MergedRouter):
            raise ValueError(
                "`model` must not be merged yet. Received: "
                f"{block.path!r} with a MergedRouter. Merge the original model "
                "to fewer experts."
            )
        reads_logits = block.router.router_inputs_kind == "logits"
        if reads_logits and len(blocks) > 1:
            raise ValueError(
                "`model` must have no router that reads the logits of another "
                "block, which are merged, too. Received: a "
                f"{type(block.router).__name__} in {block.path!r}. Use "
                "`prune_experts`."
            )


def _distances(block: Mixture, record: Record, by: str) -> np.ndarray:
    """Return the distances of the experts of a block, `(E, E)`."""
    if by == "router_logits":
        columns = np.concatenate(record.logits).T
        norms = np.linalg.norm(columns, axis=1, keepdims=True)
        return averaging.distances(columns / np.maximum(norms, 1e-12))
    outputs = outputs_of(block.experts, np.concatenate(record.tokens))
    outputs = outputs.reshape(len(outputs), -1)
    norm = np.linalg.norm(outputs, axis=1).mean()
    return averaging.distances(outputs / max(norm, 1e-12))


def _change_block(
    changes: Changes, block: Mixture, groups: list[list[int]], load: np.ndarray
) -> None:
    """Change the config and the weights of a block."""

    def edit_block(config: Config) -> Config:
        given: Config = MoEBlock.get_config(block)
        given.pop("top_k", None)
        given.pop("jitter", None)
        given |= {
            "num_experts": len(groups),
            "router": _serialized(block.router, len(groups)),
        }
        if type(block) is MoEBlock:
            return given
        names = {
            "module": "keras_moe.layers.moe_block",
            "class_name": "MoEBlock",
            "registered_name": "keras_moe>MoEBlock",
            "config": given,
        }
        return {REPLACEMENT: names}

    def move_experts(old: Expert, new: Expert) -> None:
        experts = read_experts(old)
        merged = [
            averaging.mean_expert([experts[e] for e in group], load[group])
            for group in groups
        ]
        write_experts(new, merged)

    def move_router(old: BaseRouter, new: MergedRouter) -> None:
        move_weights(old, new.router)
        into = np.zeros(old.num_experts, "float32")
        for place, group in enumerate(groups):
            into[group] = place
        assign(new.merged_into, into)

    changes.edit(block, edit_block)
    changes.edit(
        block.experts, lambda config: {**config, "num_experts": len(groups)}
    )
    changes.transfer(block.experts, move_experts)
    changes.transfer(block.router, move_router)
    mixtures.reset_statistics(changes, block)


def _serialized(router: BaseRouter, num_experts: int) -> Config:
    """Return the config of a `MergedRouter` around a copy of a router."""
    config = keras.saving.serialize_keras_object(router)
    config.pop("build_config", None)
    copy = keras.saving.deserialize_keras_object(config)
    merged = MergedRouter(num_experts, copy, name="merged_router")
    serialized: Config = keras.saving.serialize_keras_object(merged)
    return serialized


def _change_model(
    changes: Changes, model: keras.Model, num_experts: int
) -> None:
    """Change the config of a model that builds its blocks from arguments."""

    def edit(config: Config) -> Config:
        router = _serialized(model.moe_blocks[0].router, num_experts)
        return {**config, "num_experts": num_experts, "router": router}

    changes.edit(model, edit)
