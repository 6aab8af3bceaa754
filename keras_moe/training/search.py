"""What a search over hyperparameters varies of a mixture of experts."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers.argument_names import check_names

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
    num_experts = _counts("num_experts", num_experts)
    top_k = _counts("top_k", top_k)
    factors = [
        checks.check_capacity_factor("capacity_factor", factor)
        for factor in checks.check_list(
            "capacity_factor", capacity_factor, "factors"
        )
    ]
    load_balancing_weight = _bounds(load_balancing_weight)
    _check_hyperparameters(hp)
    experts = hp.Choice("num_experts", list(num_experts))
    choices = {n: _top_k_of(hp, n, top_k) for n in num_experts}
    factor = hp.Choice(
        "capacity_factor", [float(f or DROPLESS) for f in factors]
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


def _counts(name, values):
    """Return the numbers to choose from as a list of one or more."""
    values = checks.check_list(name, values, "one or more integers")
    if not values:
        raise ValueError(
            f"`{name}` must offer one value or more. Received: {name}=[]. "
            f"Pass, for instance, {name}=(2, 4)."
        )
    return [checks.check_positive_int(name, value) for value in values]


def _bounds(values):
    """Return the least and the largest loss weight."""
    name = "load_balancing_weight"
    values = checks.check_list(name, values, "two numbers")
    if len(values) == 2:
        low, high = (checks.check_weight(name, value) for value in values)
        if 0 < low <= high:
            return low, high
    raise ValueError(
        f"`{name}` must be the least and the largest weight, both above 0. "
        f"Received: {name}={values!r}. Pass, for instance, (1e-3, 1e-1)."
    )


def _check_hyperparameters(hp):
    """Raise if `hp` is not what a tuner gives to a builder."""
    if hasattr(hp, "Choice") and hasattr(hp, "Float"):
        return
    raise ValueError(
        "`hp` must be the keras_tuner.HyperParameters of a tuner. Received: "
        f"hp={hp!r}. Call search_space in the builder that a tuner calls."
    )


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

    checks.check_callable("build", build)
    known = inspect.signature(search_space).parameters
    check_names("search_space", space, [n for n in known if n != "hp"])

    def build_of(hp):
        return build(**search_space(hp, **space))

    return build_of
