"""Experts that do nearly the same become one.

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
from keras_moe.layers import MoEBlock
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import (
    REPLACEMENT,
    Changes,
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
    """Returns a smaller model in which experts that are alike are one.

    In the manner of M-SMoE (Li et al. 2024, "Merge, Then Compress"), for the
    `Expert` banks of every `MoEBlock` and `HierarchicalMoE`: experts are
    grouped by what they do on `data`, their hidden units are put in one
    order, and each group becomes the mean of its members' weights, weighted
    by how many tokens they got. The paper forms groups around the most used
    experts, by router logits; here they are clustered, by outputs unless `by`
    says otherwise. Experts that are alike up to the order of their hidden
    units merge exactly.

    The router stays as it is, with its E columns: a `MergedRouter` leads each
    column to its merged expert. So a token's pairs and weights are those of
    the trained model, which new rows, one an expert, could not give; a
    merged expert's probability is the sum of its columns'. The columns are
    E * D numbers.

    The new model is not compiled, the optimizer's state is not carried over,
    and load statistics start anew. A `HierarchicalMoE` comes back as a
    `MoEBlock` of the same router.

    Args:
        model: a built model; it stays as it is.
        keep: M, experts of each block: an integer, or a fraction below 1.
        data: inputs, some hundred examples; see `prune_experts`.
        by: what makes experts alike: `"output"`, the distance of their
            outputs for the same tokens, relative to their mean norm;
            `"router_logits"`, the cosine of their logits, as in the paper.

    Returns:
        A model with M experts in each block.

    Raises:
        ValueError: for an argument out of its range, no data, experts that
            are no `Expert` bank or that blocks share, quantised experts, or
            a model that is merged already.
        ImportError: without SciPy.
    """
    checks.check_choice("by", by, SIMILARITIES)
    blocks = mixtures.changeable_blocks(model)
    mixtures.check_banks(blocks, "merge_experts")
    counts = [mixtures.count_kept(keep, b.num_experts) for b in blocks]
    _check_routers(blocks)
    if data is None:
        raise ValueError(
            "`data` must be given: experts are compared on it. Received: "
            "data=None. Pass some hundred training inputs."
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


def _check_routers(blocks):
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
                "`merge_experts` cannot go on from the logits of a block that "
                "was merged. Received: a "
                f"{type(block.router).__name__} in {block.path!r}. Use "
                "`prune_experts`."
            )


def _distances(block: Mixture, record: Record, by: str) -> np.ndarray:
    """How far any two experts are apart, `(E, E)`."""
    if by == "router_logits":
        columns = np.concatenate(record.logits).T
        norms = np.linalg.norm(columns, axis=1, keepdims=True)
        return averaging.distances(columns / np.maximum(norms, 1e-12))
    outputs = outputs_of(block.experts, np.concatenate(record.tokens))
    outputs = outputs.reshape(len(outputs), -1)
    norm = np.linalg.norm(outputs, axis=1).mean()
    return averaging.distances(outputs / max(norm, 1e-12))


def _change_block(changes, block, groups, load):
    """Says what becomes of a block's config and weights."""

    def edit_block(config):
        given = MoEBlock.get_config(block)
        given.pop("top_k", None), given.pop("jitter", None)
        given |= {
            "num_experts": len(groups),
            "router": _serialized(block.router, len(groups)),
        }
        if type(block) is MoEBlock:
            return given
        names: dict = {"module": "keras_moe.layers.moe_block"}
        names |= {"class_name": "MoEBlock"}
        names |= {"registered_name": "keras_moe>MoEBlock", "config": given}
        return {REPLACEMENT: names}

    def move_experts(old, new):
        experts = read_experts(old)
        merged = [
            averaging.mean_expert([experts[e] for e in group], load[group])
            for group in groups
        ]
        write_experts(new, merged)

    def move_router(old, new):
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
    mixtures.start_statistics_anew(changes, block)


def _serialized(router, num_experts):
    """The config of a merged router around a copy of one."""
    config = keras.saving.serialize_keras_object(router)
    config.pop("build_config", None)
    copy = keras.saving.deserialize_keras_object(config)
    merged = MergedRouter(num_experts, copy, name="merged_router")
    return keras.saving.serialize_keras_object(merged)


def _change_model(changes, model, num_experts):
    """Says what becomes of a model that builds its blocks from arguments."""

    def edit(config):
        router = _serialized(model.moe_blocks[0].router, num_experts)
        return {**config, "num_experts": num_experts, "router": router}

    changes.edit(model, edit)
