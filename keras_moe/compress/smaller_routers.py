"""Routers for fewer experts: their arguments and their weights.

E experts, N null experts, K top_k, G groups, n experts that stay.
"""

import keras
import numpy as np

from keras_moe import _keras
from keras_moe.layers import LearnedRouter
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import assign, own_weights, to_array


def check_router(block: Mixture, keep: int) -> None:
    """Raises where a block's router cannot choose among `keep` experts."""
    router = block.router
    if not isinstance(router, LearnedRouter):
        raise ValueError(
            "`prune_experts` needs a router that learns: its rows go with the "
            f"experts. Received: {type(router).__name__} in {block.path!r}, "
            "whose experts follow from ids. Use `merge_experts`, which keeps "
            "the router, or change the ids and train anew."
        )
    groups = getattr(router, "num_groups", 1)
    if keep % groups:
        raise ValueError(
            "`keep` must be a multiple of the router's `num_groups`: each "
            f"group keeps as many. Received: keep={keep}, num_groups={groups} "
            f"in {block.path!r}. Pass, for instance, keep={groups}."
        )
    most = keep * getattr(router, "top_k_groups", 1) // groups
    if router.top_k > most:
        raise ValueError(
            "`keep` must leave a token's `top_k` experts. Received: "
            f"keep={keep}, which leaves {most} to choose from, and top_k="
            f"{router.top_k} in {block.path!r}. Raise `keep`, or build the "
            "model with a smaller `top_k` and the same weights first."
        )


def choose(scores: np.ndarray, keep: int, groups: int) -> np.ndarray:
    """Returns the best experts in their order, int `(n,)`.

    Args:
        scores: `(E,)`; of equal ones the first stay.
        keep: n.
        groups: G, of consecutive experts; each keeps n / G.
    """
    size = len(scores) // groups
    kept = []
    for group, part in enumerate(scores.reshape(groups, size)):
        best = np.argsort(-part, kind="stable")[: keep // groups]
        kept.append(group * size + np.sort(best))
    return np.concatenate(kept)


def pruned_config(router, config: dict, kept: np.ndarray) -> dict:
    """Returns the config of a router without the experts that go.

    Args:
        router: built.
        config: of it, or of one with the same arguments.
        kept: int `(n,)`.
    """
    config = {**config, "num_experts": len(kept)}
    if config.get("max_experts") is not None:
        config["max_experts"] = min(config["max_experts"], len(kept))
    if "temperature" in config and config.get("routing_dim", 0) is None:
        config["routing_dim"] = router.kernel.shape[0]
    if config.get("experts_of_modality") is not None:
        config["experts_of_modality"] = _modalities(router, kept)
    return config


def _modalities(router, kept):
    """The experts of each modality by their new numbers."""
    place = {int(expert): new for new, expert in enumerate(kept)}
    rows = [
        [place[e] for e in row if e in place]
        for row in router.experts_of_modality
    ]
    if min(map(len, rows)) >= router.top_k:
        return rows
    raise ValueError(
        "`keep` must leave each modality `top_k` of its experts. Received: "
        f"experts {kept.tolist()} to stay, experts_of_modality="
        f"{router.experts_of_modality}, top_k={router.top_k}. Raise `keep`, "
        "or choose with `data` of all modalities."
    )


def move_router(
    old: LearnedRouter, new: LearnedRouter, kept: np.ndarray
) -> None:
    """Copies a router's weights, without the rows of experts that go.

    Columns behind the experts', of null experts or groups, all stay.
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


def _check_known(router: keras.layers.Layer):
    if layers := _keras.layers_right_below(router):
        raise ValueError(
            "A router must own its weights itself to lose rows of them. "
            f"Received: {type(router).__name__} with the layers "
            f"{[x.name for x in layers]}. Use `merge_experts`, which "
            "keeps the router."
        )
