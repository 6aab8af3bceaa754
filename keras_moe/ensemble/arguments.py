"""Check the arguments of an ensemble, and make its combiner from them."""

from typing import Any, NoReturn

import keras

from keras_moe import checks
from keras_moe.ensemble import combiners
from keras_moe.ensemble.snapshots import clones

METHODS = (
    "mean",
    "weighted",
    "hard_vote",
    "soft_vote",
    "median",
    "stacking",
    "snapshot",
)
COMBINERS: dict[str, type[combiners.Combiner]] = {
    "weighted": combiners.WeightedMean,
    "hard_vote": combiners.HardVote,
    "median": combiners.Median,
}


def check_arguments(
    method: str,
    from_logits: bool,
    regression: bool,
    meta_model: Any,
    train_members: bool,
) -> None:
    """Raise if an argument of `Ensemble` is wrong or excluded by another."""
    checks.check_choice("method", method, METHODS)
    checks.check_bool("from_logits", from_logits)
    checks.check_bool("regression", regression)
    checks.check_bool("train_members", train_members)
    if meta_model is not None:
        checks.check_is_a(
            "meta_model",
            meta_model,
            keras.layers.Layer,
            "None or a Keras model or layer",
            "Pass, for instance, keras_moe.ensemble.StackingHead(2).",
        )
    if regression and from_logits:
        _refuse("regression", regression, "from_logits=True", "Drop one.")
    if regression and method in ("soft_vote", "hard_vote"):
        remedy = "Choose method='mean' or 'median'."
        _refuse("regression", regression, f"method={method!r}", remedy)
    if train_members and method in ("hard_vote", "snapshot"):
        remedy = "Choose another method, or call `fit_members`."
        if method == "snapshot":
            remedy = "Leave it out: `fit` trains a snapshot ensemble anyway."
        _refuse("train_members", train_members, f"method={method!r}", remedy)
    if meta_model is not None and method != "stacking":
        remedy = "Choose method='stacking'."
        _refuse("meta_model", meta_model, f"method={method!r}", remedy)


def _refuse(name: str, value: object, other: str, remedy: str) -> NoReturn:
    raise ValueError(
        f"`{name}` must not be combined with {other}. Received: "
        f"{name}={value!r}, {other}. {remedy}"
    )


def with_snapshots(
    models: list[keras.Model], method: str, num_snapshots: int | None
) -> list[keras.Model]:
    """Return the members; for snapshots, copies of the one model.

    Raises:
        ValueError: If `num_snapshots` is passed with another method; or, for
            snapshots, if it is no positive int, or if there are neither one nor
            `num_snapshots` models.
    """
    if method != "snapshot":
        if num_snapshots is not None:
            remedy = "Choose method='snapshot'."
            _refuse("num_snapshots", num_snapshots, f"{method=}", remedy)
        return models
    number = checks.check_positive_int("num_snapshots", num_snapshots)
    if len(models) == number:  # of an ensemble that is loaded
        return models
    if len(models) == 1:
        return clones(models[0], number)
    raise ValueError(
        "`models` must be one model if method='snapshot': the members are "
        f"that model at several times. Received: {len(models)} models, "
        f"num_snapshots={num_snapshots}. Pass the one to train."
    )


def combiner_of(
    method: str,
    num_members: int,
    from_logits: bool,
    regression: bool,
    meta_model: keras.layers.Layer | None,
) -> combiners.Combiner:
    """Return the layer that combines the members' outputs."""
    scale = "logits" if from_logits else "probabilities"
    if regression or method == "mean":
        scale = "values"
    if method != "stacking":
        return COMBINERS.get(method, combiners.Combiner)(scale, name=method)
    if meta_model is None:
        meta_model = combiners.StackingHead(
            num_members, regression, dtype="float32", name="meta_model"
        )
    return combiners.Stacking(meta_model, scale, name=method)
