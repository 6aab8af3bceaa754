"""Remove the experts of a model that matter least.

E experts, n experts that are kept.
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
    Config,
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
    """Return a smaller model without the experts that matter least.

    Every `MoEBlock`, `HierarchicalMoE`, and `MixtureOfModels` keeps its best
    experts in their order, and the parts of its router that belong to them:
    columns, biases, keys, loss-free biases, and switches. Disabled experts are
    removed first. If the model has a `PathwayRouter`, all blocks keep the
    experts with the same indices, since the logits of one block are inputs of
    the next. Other mixtures (`SoftMoE`, `MultiGateMoE`, `CGC`, `PLE`) do not
    change.

    The new model is of the same class. It is not compiled, the optimizer's
    state is not carried over, and load statistics are empty: fine-tune it for
    an epoch.

    Args:
        model: Built model. It does not change.
        keep: int in 1 ... E, or float in 0 < keep <= 1. n, the number of
            experts to keep in each block, or a fraction of E.
        by: str. Worth of an expert. `"load"` (the default) is the share of
            pairs sent to it on `data` or, without `data`, in training
            (`block.expert_load`); `"weight"` is the Euclidean norm of its
            weights; `"saliency"` is the mean over its pairs of `data` of
            combine weight times the norm of its output (REAP: Lasby et al.
            2025, "REAP the Experts", eq. 9).
        data: Inputs, or None. Arrays as a model takes them, or an iterable of
            batches as `fit` takes it, with targets or without. `None` (the
            default) uses the load of training.

    Returns:
        A model with n experts in each block.

    Raises:
        ValueError: If an argument is out of its range; if the `top_k` of a
            router exceeds n, if its `num_groups` does not divide n, or if it
            has no weights per expert (`HashRouter`, `RuleRouter`,
            `MergedRouter`); if a mixture is of another class; if experts or
            routers are shared or quantized; or if `data` is None and `by` is
            `"saliency"`, or `"load"` without load of training.

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
    smaller = keras_moe.compress.prune_experts(model, keep=0.5, data=x)
    ```
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


def _scores(
    model: keras.Model, blocks: list[Mixture], by: str, data: Any
) -> list[np.ndarray]:
    """Return the worth of each block's experts, a list of `(E,)`."""
    if by == "weight":
        return [_weight_norms(block) for block in blocks]
    for block in blocks:
        if getattr(block, "runs_all", False):
            raise ValueError(
                f"`by` must be 'weight' if every expert runs on all inputs. "
                f"Received: by={by!r}, {block.path!r} without `top_k`. Pass "
                "by='weight', or build it with `top_k`."
            )
    if data is not None:
        records = observe(model, blocks, data)
        name = "pairs" if by == "load" else "saliency"
        return [getattr(records[id(block)], name) for block in blocks]
    if by == "saliency":
        raise ValueError(
            "`data` must be given if `by` is 'saliency', which is measured on "
            "it. Received: data=None. Pass a few hundred training inputs."
        )
    return [load_of_training(block) for block in blocks]


def load_of_training(block: Mixture) -> np.ndarray:
    """Return `block.expert_load`, `(E,)`.

    Raises:
        ValueError: If the block was never trained, or its statistics were
            reset.
    """
    if to_array(block.statistics.num_batches)[0] > 0:
        return to_array(block.expert_load)
    raise ValueError(
        "`data` must be given if the model has no load of training. "
        f"Received: data=None, block {block.path!r} without statistics: not "
        "trained, or reset. Pass a few hundred training inputs."
    )


def _weight_norms(block: Mixture) -> np.ndarray:
    """Return the Euclidean norm of each expert's weights, `(E,)`."""
    layers = mixtures.layers_of_bank(block)
    if layers is None:
        arrays = [to_array(w) for w in block.experts.weights]
        squares = [(a.reshape(len(a), -1) ** 2).sum(1) for a in arrays]
        norms: np.ndarray = np.sqrt(np.sum(squares, axis=0))
        return norms
    return np.array(
        [
            np.sqrt(sum((to_array(w) ** 2).sum() for w in x.trainable_weights))
            for x in layers
        ]
    )


def _chosen(
    blocks: list[Mixture], scores: list[np.ndarray], counts: list[int]
) -> list[np.ndarray]:
    """Return the indices of the experts that each block keeps."""
    scores = [
        np.where(mixtures.enabled_experts(block), score, -np.inf)
        for block, score in zip(blocks, scores, strict=True)
    ]
    reads_logits = [b.router.router_inputs_kind == "logits" for b in blocks]
    if any(reads_logits):
        _check_first(blocks[0], reads_logits[0])
        if len({b.num_experts for b in blocks}) > 1:
            raise ValueError(
                "`model` must have the same number of experts in all blocks if "
                "one has a PathwayRouter. Received: num_experts="
                f"{[b.num_experts for b in blocks]}. Build a model with one "
                "`num_experts`."
            )
        total = sum(s / np.sum(s, where=np.isfinite(s)) for s in scores)
        scores = [total] * len(blocks)
    return [
        choose(score, count, getattr(block.router, "num_groups", 1))
        for block, score, count in zip(blocks, scores, counts, strict=True)
    ]


def _check_first(block: Mixture, reads_logits: bool) -> None:
    """Raise if a model's first block reads logits from outside the model.

    These would still have E columns.
    """
    if reads_logits:
        raise ValueError(
            "`model` must hold the block whose logits a router reads. "
            f"Received: {type(block.router).__name__} in the first "
            f"block, {block.path!r}. Prune the model that holds both."
        )


def _change_block(changes: Changes, block: Mixture, kept: np.ndarray) -> None:
    """Change the config and the weights of a block."""

    def edit_experts(config: Config) -> Config:
        if "layers" not in config:
            return {**config, "num_experts": len(kept)}
        return {**config, "layers": [config["layers"][e] for e in kept]}

    def edit_block(config: Config) -> Config:
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
    mixtures.reset_statistics(changes, block)


def _move_experts(
    old: keras.layers.Layer, new: keras.layers.Layer, kept: np.ndarray
) -> None:
    """Copy the weights of the experts that are kept."""
    if hasattr(old, "layers"):
        for place, expert in enumerate(kept):
            move_weights(old.layers[expert], new.layers[place])
        return
    for one, other in zip(own_weights(old), own_weights(new), strict=True):
        assign(other, to_array(one)[kept])


def _change_model(
    changes: Changes, model: keras.Model, kept_by_block: dict[int, np.ndarray]
) -> None:
    """Change the config of a model that builds its blocks from arguments."""
    kept = [kept_by_block[id(block)] for block in model.moe_blocks]

    def edit(config: Config) -> Config:
        config = {**config, "num_experts": len(kept[0])}
        if config.get("router") is None:
            return config
        routers = [
            pruned_config(block.router, config["router"]["config"], experts)
            for block, experts in zip(model.moe_blocks, kept, strict=True)
        ]
        if any(router != routers[0] for router in routers):
            raise ValueError(
                "`model` must keep the same experts of each modality in all "
                "blocks, whose routers it builds from one argument. Received: "
                f"{model.name!r} with {[x.tolist() for x in kept]}. Build a "
                "functional model of MoEBlocks instead."
            )
        return {**config, "router": config["router"] | {"config": routers[0]}}

    changes.edit(model, edit)
