"""Search the hyperparameters of a mixture of experts with `keras_tuner`."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers.argument_names import check_names

DROPLESS = 0.0  # stands for capacity_factor=None, which a tuner cannot choose


def search_space(
    hp: Any,
    num_experts: Sequence[int] = (4, 8, 16),
    top_k: Sequence[int] = (1, 2, 4),
    capacity_factor: Sequence[float | None] = (None, 1.0, 1.25, 2.0),
    load_balancing_weight: tuple[float, float] = (1e-3, 1e-1),
) -> dict[str, Any]:
    """Choose the arguments of a `MoEBlock` in a `keras_tuner` search.

    `top_k` never exceeds `num_experts`: each number of experts has a choice of
    its own, such as `top_k_of_8`. A `capacity_factor` of 0.0 in the tuner's
    tables means None: no token is dropped.

    Args:
        hp: `keras_tuner.HyperParameters` that a tuner passes to a builder.
        num_experts: Positive ints to choose from. Defaults to `(4, 8, 16)`.
        top_k: Positive ints to choose from. At least one must not exceed the
            smallest of `num_experts`. Defaults to `(1, 2, 4)`.
        capacity_factor: Floats above 0, or None, to choose from. Defaults to
            `(None, 1.0, 1.25, 2.0)`.
        load_balancing_weight: Tuple of two floats above 0, the bounds of a
            search on a logarithmic scale. Defaults to `(1e-3, 1e-1)`.

    Returns:
        A dict of the four arguments.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range, or
            if all of `top_k` exceed one of `num_experts`.

    Example:

    ```python
    import keras_tuner

    arguments = keras_moe.training.search_space(keras_tuner.HyperParameters())
    block = keras_moe.MoEBlock(intermediate_dim=32, **arguments)
    ```
    """
    counts = _counts("num_experts", num_experts)
    top_k = _counts("top_k", top_k)
    factors = [
        checks.check_capacity_factor("capacity_factor", factor)
        for factor in checks.check_list(
            "capacity_factor", capacity_factor, "factors"
        )
    ]
    load_balancing_weight = _bounds(load_balancing_weight)
    _check_hyperparameters(hp)
    experts = hp.Choice("num_experts", counts)
    choices = {n: _top_k_of(hp, n, top_k) for n in counts}
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


def _counts(name: str, values: object) -> list[int]:
    """Return the numbers to choose from as a list of one or more."""
    listed = checks.check_list(name, values, "one or more integers")
    if not listed:
        raise ValueError(
            f"`{name}` must hold one or more values. Received: {name}=[]. "
            f"Pass, for instance, {name}=(2, 4)."
        )
    return [checks.check_positive_int(name, value) for value in listed]


def _bounds(values: object) -> tuple[float, float]:
    """Return the smallest and the largest loss weight."""
    name = "load_balancing_weight"
    listed = checks.check_list(name, values, "two numbers")
    if len(listed) == 2:
        low, high = (checks.check_weight(name, value) for value in listed)
        if 0 < low <= high:
            return low, high
    raise ValueError(
        f"`{name}` must be the smallest and the largest weight, both above 0. "
        f"Received: {name}={listed!r}. Pass, for instance, (1e-3, 1e-1)."
    )


def _check_hyperparameters(hp: Any) -> None:
    """Raise if `hp` does not have the methods of `HyperParameters`."""
    if hasattr(hp, "Choice") and hasattr(hp, "Float"):
        return
    raise ValueError(
        "`hp` must be the keras_tuner.HyperParameters of a tuner. Received: "
        f"hp={hp!r}. Call search_space in the builder that a tuner calls."
    )


def _top_k_of(hp: Any, number: int, top_k: Sequence[int]) -> int:
    """Return the choice of K, active if this number of experts is chosen."""
    fitting = [k for k in top_k if k <= number]
    if not fitting:
        raise ValueError(
            "`top_k` must hold a value that does not exceed any of "
            f"`num_experts`. Received: top_k={tuple(top_k)}, num_experts="
            f"{number}. Add 1 to `top_k`."
        )
    with hp.conditional_scope("num_experts", [number]):
        choice: int = hp.Choice(f"top_k_of_{number}", fitting)
        return choice


def hypermodel(
    build: Callable[..., keras.Model], **space: Any
) -> Callable[..., keras.Model]:
    """Return the hypermodel of a `keras_tuner` tuner.

    Use it as `keras_tuner.RandomSearch(hypermodel(build),
    objective="val_loss")` after `pip install "keras-moe[tuner]"`. To search
    other hyperparameters, too, write the builder yourself and call
    `search_space(hp)` in it.

    Args:
        build: Function that takes `num_experts`, `top_k`, `capacity_factor`,
            and `load_balancing_weight` as keywords and returns a compiled
            model.
        **space: Arguments of `search_space` but `hp`.

    Returns:
        A function from `keras_tuner.HyperParameters` to a compiled model.

    Raises:
        ValueError: If `build` is no function, or if an argument is none of
            `search_space`.

    Example:

    ```python
    import keras_tuner


    def build(**arguments):
        block = keras_moe.MoEBlock(intermediate_dim=32, **arguments)
        model = keras.Sequential([keras.Input((16,)), block])
        model.compile("adam", "mse")
        return model


    search = keras_moe.training.hypermodel(build, num_experts=(4, 8))
    model = search(keras_tuner.HyperParameters())  # as a tuner calls it
    ```
    """
    checks.check_callable("build", build)
    known = inspect.signature(search_space).parameters
    check_names("search_space", space, [n for n in known if n != "hp"])

    def build_of(hp: Any) -> keras.Model:
        return build(**search_space(hp, **space))

    return build_of
