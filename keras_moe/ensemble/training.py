"""Train the members of an ensemble one by one.

M members, N samples.
"""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_moe.ensemble.members import Member

if TYPE_CHECKING:  # it imports this module
    from keras_moe.ensemble.model import Ensemble


def fit_members(
    ensemble: "Ensemble",
    x: Any,
    y: Any,
    bootstrap: bool,
    seed: int | None,
    **kwargs: Any,
) -> list[keras.callbacks.History]:
    """Fit each member; see `Ensemble.fit_members`."""
    if bootstrap:
        check_arrays(x, y)
    histories = []
    for number, member in enumerate(ensemble.members):
        if seed is not None:
            keras.utils.set_random_seed(seed + number)
        compile_member(ensemble, member.model)
        data, options = _own_data(member, x, y, kwargs)
        if bootstrap:
            rng = np.random.default_rng(None if seed is None else seed + number)
            data, options = resample(rng, data, options)
        histories.append(member.model.fit(*data, **options))
    return histories


def _own_data(
    member: Member, x: Any, y: Any, kwargs: dict[str, Any]
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Return data and options of `fit` with the member's own inputs."""
    validation = kwargs.get("validation_data")
    if isinstance(validation, (tuple, list)):
        inputs, *rest = validation
        validation = (member.own_inputs(inputs), *rest)
        kwargs = {**kwargs, "validation_data": validation}
    return (member.own_inputs(x), y), kwargs


def resample(
    rng: np.random.Generator, data: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Draw N of N samples with replacement (Breiman 1996, "Bagging").

    Args:
        rng: Generator of the draws.
        data: Arrays `(N, ...)` in any structure.
        options: Arguments of `fit`. A `sample_weight` is drawn, too.
    """
    num_samples = keras.tree.flatten(data)[0].shape[0]
    rows = rng.integers(num_samples, size=num_samples)

    def draw(array: Any) -> np.ndarray:
        drawn: np.ndarray = np.asarray(array)[rows]
        return drawn

    weights = options.get("sample_weight")
    if weights is not None:
        options = {**options, "sample_weight": draw(weights)}
    return keras.tree.map_structure(draw, data), options


def check_arrays(x: Any, y: Any) -> None:
    """Raise if the data are not arrays that samples can be drawn from."""
    arrays = keras.tree.flatten((x, y))
    if all(hasattr(a, "shape") and len(a.shape) for a in arrays):
        return
    raise ValueError(
        "`bootstrap` must be False if the data are not arrays: samples are "
        f"drawn by their index. Received: x of type {type(x).__name__}, y of "
        f"type {type(y).__name__}. Pass arrays, or draw in the data pipeline "
        "and fit each of `ensemble.models`."
    )


def compile_member(ensemble: "Ensemble", model: keras.Model) -> None:
    """Compile a model as the ensemble is, unless it is compiled already.

    Raises:
        ValueError: If neither is compiled, or if the member is not compiled and
            its outputs are logits, for which the ensemble's loss is wrong.
    """
    if model.compiled:
        return
    if ensemble.from_logits or not ensemble.compiled:
        reason = (
            "the ensemble's loss takes probabilities, and theirs takes logits"
            if ensemble.from_logits
            else "the ensemble is not compiled either"
        )
        raise ValueError(
            f"The members must be compiled: {reason}. Received: model "
            f"{model.name!r}, not compiled. Call its `compile(optimizer, "
            "loss)` before."
        )
    model.compile_from_config(ensemble.get_compile_config())
