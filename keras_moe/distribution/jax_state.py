"""Keep a model usable whose `fit`, `evaluate`, or `predict` fails on JAX.

Keras takes the values out of the variables as long as steps run, and puts them
back after the last one. A batch that cannot be laid out on the devices ends
the call before: the values are put back here.
"""

import keras

from keras_moe.distribution.steps import around_calls, around_steps

# What a step takes and returns, by its kind.
PARTS = {
    "train": ("trainable", "non_trainable", "optimizer", "metrics"),
    "test": ("trainable", "non_trainable", "metrics"),
    "predict": ("trainable", "non_trainable"),
}


def install() -> None:
    """Let each call of a Keras model put the values back if it fails."""
    around_calls("keeps values", _keeping)


def _keeping(own, model, args, kwargs):
    kept: dict = {}

    def wrap(kind, function):
        def step(state, batches):
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


def _put_back(model: keras.Model, kind: str, state: tuple) -> None:
    """Assign a state, but for what a failed program has used up."""
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
