"""Experts that are little used leave the model.

E experts, n experts that stay.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import checks
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.recording import observe
from keras_moe.compress.smaller_routers import (
    check_router,
    choose,
    move_router,
    pruned_config,
)
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import (
    Changes,
    assign,
    move_weights,
    own_weights,
    rebuild,
    to_array,
)

CRITERIA = ("load", "weight", "saliency")


def prune_experts(
    model: keras.Model,
    keep: int | float,
    by: str = "load",
    data: Any = None,
) -> keras.Model:
    """Returns a smaller model without the experts that matter least.

    Of every `MoEBlock`, `HierarchicalMoE` and `MixtureOfModels` (other
    mixtures stay as they are) the best experts stay, in their order, and of
    the router what belongs to them: columns, biases, keys, loss-free biases,
    switches. Experts that are switched off go first. With a `PathwayRouter`
    in the model, all blocks keep experts of the same numbers, since one
    block's logits are the next one's inputs.

    The new model is of the same class. It is not compiled, the optimizer's
    state is not carried over, and load statistics start anew: fine-tune it
    for an epoch.

    Args:
        model: a built model; it stays as it is.
        keep: n of each block's experts: an integer, or a fraction below 1 (or
            1.0, all).
        by: what an expert is worth: `"load"`, the share of pairs sent to it,
            on `data` or, without, in training (`block.expert_load`);
            `"weight"`, the Euclidean norm of its weights; `"saliency"`, the
            mean over its tokens of combine weight times the norm of its
            output (REAP: Lasby et al. 2025, "REAP the Experts", eq. 9), on
            `data`.
        data: inputs, without targets or with: arrays, or an iterable of
            batches; see `batches_of`.

    Returns:
        A model with n experts in each block.

    Raises:
        ValueError: for an argument out of its range; a router whose `top_k`
            exceeds n, that has no rows (`HashRouter`, `RuleRouter`, a merged
            one) or whose groups n does not fit; experts or routers that
            blocks share; quantised experts; and where there is neither load
            of a training nor `data`.
    """
    checks.check_choice("by", by, CRITERIA)
    blocks = mixtures.changeable_blocks(model)
    kept_counts = [mixtures.count_kept(keep, b.num_experts) for b in blocks]
    for block, count in zip(blocks, kept_counts, strict=True):
        check_router(block, count)
    scores = _scores(model, blocks, by, data)
    changes = Changes()
    kept = _chosen(blocks, scores, kept_counts)
    for block, experts in zip(blocks, kept, strict=True):
        _change_block(changes, block, experts)
    by_block = dict(zip(map(id, blocks), kept, strict=True))
    for part in mixtures.models_of_arguments(model, blocks):
        _change_model(changes, part, by_block)
    return rebuild(model, changes)


def _scores(model, blocks, by, data):
    """What each expert of each block is worth: a list of `(E,)`."""
    if by == "weight":
        return [_weight_norms(block) for block in blocks]
    for block in blocks:
        if getattr(block, "runs_all", False):
            raise ValueError(
                f"`by` must be 'weight' where every expert runs on everything. "
                f"Received: by={by!r}, {block.path!r} without `top_k`. Pass "
                "by='weight', or build it with `top_k`."
            )
    if data is not None:
        records = observe(model, blocks, data)
        name = "pairs" if by == "load" else "saliency"
        return [getattr(records[id(block)], name) for block in blocks]
    if by == "saliency":
        raise ValueError(
            "`data` must be given where `by` is 'saliency': it is measured. "
            "Received: data=None. Pass some hundred training inputs."
        )
    return [load_of_training(block) for block in blocks]


def load_of_training(block: Mixture) -> np.ndarray:
    """Returns `block.expert_load`, `(E,)`.

    Raises:
        ValueError: where the block was never trained.
    """
    if to_array(block.statistics.num_batches)[0] > 0:
        return to_array(block.expert_load)
    raise ValueError(
        "`data` must be given where the model has no load of a training. "
        f"Received: data=None, block {block.path!r} without statistics: not "
        "trained, or reset. Pass some hundred training inputs."
    )


def _weight_norms(block):
    """The Euclidean norm of each expert's weights, `(E,)`."""
    layers = mixtures.layers_of_bank(block)
    if layers is None:
        arrays = [to_array(w) for w in block.experts.weights]
        squares = [(a.reshape(len(a), -1) ** 2).sum(1) for a in arrays]
        return np.sqrt(np.sum(squares, axis=0))
    return np.array(
        [
            np.sqrt(sum((to_array(w) ** 2).sum() for w in x.trainable_weights))
            for x in layers
        ]
    )


def _chosen(blocks, scores, counts):
    """The experts of each block that stay."""
    scores = [
        np.where(mixtures.enabled_experts(block), score, -np.inf)
        for block, score in zip(blocks, scores, strict=True)
    ]
    reads_logits = [b.router.router_inputs_kind == "logits" for b in blocks]
    if any(reads_logits):
        _check_first(blocks[0], reads_logits[0])
        if len({b.num_experts for b in blocks}) > 1:
            raise ValueError(
                "`model` must have as many experts in all blocks where one "
                "has a PathwayRouter. Received: num_experts="
                f"{[b.num_experts for b in blocks]}. Prune blocks of their own "
                "models."
            )
        total = sum(s / np.sum(s, where=np.isfinite(s)) for s in scores)
        scores = [total] * len(blocks)
    return [
        choose(score, count, getattr(block.router, "num_groups", 1))
        for block, score, count in zip(blocks, scores, counts, strict=True)
    ]


def _check_first(block, reads_logits):
    """Raises where the logits that a model's first block reads come from
    outside: they would still be of E experts."""
    if reads_logits:
        raise ValueError(
            "The logits that a router reads must come from a block of the same "
            f"model. Received: {type(block.router).__name__} in the first "
            f"block, {block.path!r}. Prune the model that holds both."
        )


def _change_block(changes, block, kept):
    """Says what becomes of a block's config and weights."""

    def edit_experts(config):
        if "layers" not in config:
            return {**config, "num_experts": len(kept)}
        return {**config, "layers": [config["layers"][e] for e in kept]}

    def edit_block(config):
        if "num_experts" in config:
            return {**config, "num_experts": len(kept)}
        return {**config, "experts": [config["experts"][e] for e in kept]}

    changes.edit(block, edit_block)
    changes.edit(block.experts, edit_experts)
    router = block.router
    changes.edit(router, lambda config: pruned_config(router, config, kept))
    changes.transfer(router, lambda old, new: move_router(old, new, kept))
    changes.transfer(
        block.experts, lambda old, new: _move_experts(old, new, kept)
    )
    mixtures.start_statistics_anew(changes, block)


def _move_experts(old, new, kept):
    """Copies the weights of the experts that stay."""
    if hasattr(old, "layers"):
        for place, expert in enumerate(kept):
            move_weights(old.layers[expert], new.layers[place])
        return
    for one, other in zip(own_weights(old), own_weights(new), strict=True):
        assign(other, to_array(one)[kept])


def _change_model(changes, model, kept_by_block):
    """Says what becomes of a model that builds its blocks from arguments."""
    kept = [kept_by_block[id(block)] for block in model.moe_blocks]

    def edit(config):
        config = {**config, "num_experts": len(kept[0])}
        if config.get("router") is None:
            return config
        routers = [
            pruned_config(block.router, config["router"]["config"], experts)
            for block, experts in zip(model.moe_blocks, kept, strict=True)
        ]
        if any(router != routers[0] for router in routers):
            raise ValueError(
                "`model` must build all routers from one argument, and its "
                "blocks kept different experts of a modality. Received: "
                f"{model.name!r} with {[x.tolist() for x in kept]}. Build a "
                "functional model of MoEBlocks instead."
            )
        return {**config, "router": config["router"] | {"config": routers[0]}}

    changes.edit(model, edit)
