"""Keep a model usable if its `fit`, `evaluate`, or `predict` fails on JAX.

Keras takes the values out of the variables while steps run, and puts them back
after the last step. If a batch cannot be laid out on the devices, the call
ends before that, and this module puts the values back.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_moe.distribution.steps import around_calls, around_steps

# The parts of the state that a step receives and returns, by its kind.
PARTS = {
    "train": ("trainable", "non_trainable", "optimizer", "metrics"),
    "test": ("trainable", "non_trainable", "metrics"),
    "predict": ("trainable", "non_trainable"),
}


def install() -> None:
    """Make each call of a Keras model put the values back if it fails."""
    around_calls("keeps values", _keeping)


def _keeping(
    own: Callable[..., Any],
    model: keras.Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    kept: dict[str, Any] = {}

    def wrap(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(state: tuple[Any, ...], batches: Any) -> Any:
            kept.update(kind=kind, state=state)
            logs, kept["state"] = function(state, batches)
            return logs, kept["state"]

        return step

    try:
        with around_steps(model, wrap):
            return own(model, *args, **kwargs)
    except Exception:
        if kept:
            _put_back(model, **kept)
        raise


def _put_back(model: keras.Model, kind: str, state: tuple[Any, ...]) -> None:
    """Assign a state, except for values that a failed program has donated."""
    optimizer = getattr(model, "optimizer", None)
    variables = {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": [] if optimizer is None else optimizer.variables,
        "metrics": model.metrics_variables,
    }
    for part, values in zip(PARTS[kind], state, strict=True):
        for variable, value in zip(variables[part], values, strict=True):
            if not value.is_deleted():
                variable.assign(value)
