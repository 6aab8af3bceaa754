"""What a search over hyperparameters varies of a mixture of experts."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

DROPLESS = 0.0  # how a search writes capacity_factor=None: it knows no None


def search_space(
    hp: Any,
    num_experts: Sequence[int] = (4, 8, 16),
    top_k: Sequence[int] = (1, 2, 4),
    capacity_factor: Sequence[float | None] = (None, 1.0, 1.25, 2.0),
    load_balancing_weight: tuple[float, float] = (1e-3, 1e-1),
) -> dict:
    """Draws the arguments of a `MoEBlock` from a `keras_tuner` search.

    `top_k` never exceeds `num_experts`: each number of experts has a choice of
    its own, `top_k_of_8`. `capacity_factor` 0.0 in the tuner's tables is None,
    dropless.

    Args:
        hp: the `keras_tuner.HyperParameters` that a tuner gives to a builder.
        num_experts: the numbers to choose from; so are the next two.
        top_k: at least one of them must be at most the smallest `num_experts`.
        capacity_factor: None, or above 0.
        load_balancing_weight: least and largest, both above 0, searched by
            their logarithm.

    Returns:
        A dict of the four arguments.

    Raises:
        ValueError: where a number of experts has no `top_k` that fits.
    """
    experts = hp.Choice("num_experts", list(num_experts))
    choices = {n: _top_k_of(hp, n, top_k) for n in num_experts}
    factor = hp.Choice(
        "capacity_factor", [float(f or DROPLESS) for f in capacity_factor]
    )
    weight = hp.Float(
        "load_balancing_weight", *load_balancing_weight, sampling="log"
    )
    return {
        "num_experts": experts,
        "top_k": choices[experts],
        "capacity_factor": None if factor == DROPLESS else factor,
        "load_balancing_weight": weight,
    }


def _top_k_of(hp, number, top_k):
    """The choice of K for that many experts, active where they are chosen."""
    fitting = [k for k in top_k if k <= number]
    if not fitting:
        raise ValueError(
            "`top_k` must offer a value at most each of `num_experts`. "
            f"Received: top_k={tuple(top_k)}, num_experts={number}. Add 1 to "
            "`top_k`."
        )
    with hp.conditional_scope("num_experts", [number]):
        return hp.Choice(f"top_k_of_{number}", fitting)


def hypermodel(
    build: Callable[..., keras.Model], **space: Any
) -> Callable[..., keras.Model]:
    """Returns what a `keras_tuner` tuner takes as its hypermodel.

    `keras_tuner.RandomSearch(hypermodel(build), objective="val_loss")`, with
    `pip install "keras-moe[tuner]"`. To search other things beside, write the
    builder and call `search_space(hp)` in it.

    Args:
        build: function of `num_experts`, `top_k`, `capacity_factor` and
            `load_balancing_weight`, as keywords, to a compiled model.
        **space: of `search_space`.

    Returns:
        A function from `keras_tuner.HyperParameters` to a compiled model.
    """

    def build_of(hp):
        return build(**search_space(hp, **space))

    return build_of
