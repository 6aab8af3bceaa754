"""Change the arguments and weights of routers to those for fewer experts.

E experts, N null experts, K top_k, G groups, n experts that are kept.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import _keras
from keras_moe.layers import LearnedRouter
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import assign, own_weights, to_array


def check_router(block: Mixture, keep: int) -> None:
    """Raise if a block's router cannot choose among `keep` experts."""
    router = block.router
    if not isinstance(router, LearnedRouter):
        raise ValueError(
            "`model` must have routers with weights per expert, which are "
            "removed with the experts. Received: "
            f"{type(router).__name__} in {block.path!r}. Use `merge_experts`, "
            "which keeps the router, or change the ids and train anew."
        )
    groups = getattr(router, "num_groups", 1)
    if keep % groups:
        raise ValueError(
            "`keep` must be a multiple of the router's `num_groups`: each "
            "group keeps the same number. Received: "
            f"keep={keep}, num_groups={groups} in {block.path!r}. Pass, for "
            f"instance, keep={groups}."
        )
    most = keep * getattr(router, "top_k_groups", 1) // groups
    if router.top_k > most:
        raise ValueError(
            "`keep` must leave at least `top_k` experts to choose from. "
            f"Received: keep={keep}, which leaves {most}, and top_k="
            f"{router.top_k} in {block.path!r}. Raise `keep`, or build the "
            "model with a smaller `top_k` and the same weights first."
        )


def choose(scores: np.ndarray, keep: int, groups: int) -> np.ndarray:
    """Return the indices of the best experts, sorted, int `(n,)`.

    Args:
        scores: float `(E,)`. Of equal scores, the first are kept.
        keep: int. n, a multiple of G.
        groups: int. G, the number of groups of consecutive experts. Each keeps
            n / G experts.
    """
    size = len(scores) // groups
    kept = []
    for group, part in enumerate(scores.reshape(groups, size)):
        best = np.argsort(-part, kind="stable")[: keep // groups]
        kept.append(group * size + np.sort(best))
    return np.concatenate(kept)


def pruned_config(
    router: LearnedRouter, config: dict[str, Any], kept: np.ndarray
) -> dict[str, Any]:
    """Return the config of a router for the experts that are kept.

    Args:
        router: Built router.
        config: Config of it, or of a router with the same arguments.
        kept: int `(n,)`. Indices of experts.
    """
    config = {**config, "num_experts": len(kept)}
    if config.get("max_experts") is not None:
        config["max_experts"] = min(config["max_experts"], len(kept))
    if "temperature" in config and config.get("routing_dim", 0) is None:
        config["routing_dim"] = router.kernel.shape[0]
    if config.get("experts_of_modality") is not None:
        config["experts_of_modality"] = _modalities(router, kept)
    return config


def _modalities(router: Any, kept: np.ndarray) -> list[list[int]]:
    """Return the new indices of the experts of each modality."""
    place = {int(expert): new for new, expert in enumerate(kept)}
    rows = [
        [place[e] for e in row if e in place]
        for row in router.experts_of_modality
    ]
    if min(map(len, rows)) >= router.top_k:
        return rows
    raise ValueError(
        "`keep` must leave each modality `top_k` of its experts. Received: "
        f"experts {kept.tolist()} are kept, experts_of_modality="
        f"{router.experts_of_modality}, top_k={router.top_k}. Raise `keep`, "
        "or choose with `data` of all modalities."
    )


def move_router(
    old: LearnedRouter, new: LearnedRouter, kept: np.ndarray
) -> None:
    """Copy the weights of a router that belong to the experts that are kept.

    Columns behind those of experts, of null experts or groups, are all copied.

    Args:
        old: Built router of E experts.
        new: Built router of n experts.
        kept: int `(n,)`. Indices of experts.
    """
    axes = {
        id(getattr(old, name, None)): axes
        for name, axes in old.expert_axes.items()
    }
    _check_known(old)
    for one, other in zip(own_weights(old), own_weights(new), strict=True):
        value = to_array(one)
        for axis in axes.get(id(one), ()):
            rest = np.arange(old.num_experts, value.shape[axis])
            value = np.take(value, np.concatenate([kept, rest]), axis)
        assign(other, value)


def _check_known(router: keras.layers.Layer) -> None:
    if layers := _keras.layers_right_below(router):
        raise ValueError(
            "`model` must have routers that own their weights themselves, so "
            f"that rows can be removed. Received: {type(router).__name__} with "
            f"the layers {[x.name for x in layers]}. Use `merge_experts`, "
            "which keeps the router."
        )
