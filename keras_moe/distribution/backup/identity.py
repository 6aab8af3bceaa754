"""What tells one model, and its optimizer, from another."""

import keras
import numpy as np

from keras_moe.distribution.backup import configurations, state
from keras_moe.distribution.backup.processes import Processes


def describe(
    model: keras.Model, processes: Processes, optimizer: bool = True
) -> dict:
    """Return what a manifest holds of a model, and of its optimizer."""
    own = state.own_variables_of(model)
    variables = state.variables_of(model) if optimizer else own
    return {
        "model": model.name,
        "optimizer": type(model.optimizer).__name__ if optimizer else None,
        "weights": len(own),
        "variables": [
            [variable.path, list(processes.shape(variable))]
            for variable in variables
        ],
        "layers": configurations.layer_configs(model),
    }


def check_same(directory: state.Path, saved: dict, mine: dict) -> None:
    """Raise if the backup is another model's.

    Names may differ: they count what was made before in the process. Without
    an optimizer of mine, those of its variables are not compared. A backup of
    schema 1 has no configuration.
    """
    there, here = saved["variables"], mine["variables"]
    alone = mine["optimizer"] is None
    if alone:
        there = there[: saved["weights"]]
    same = [shape for _, shape in there] == [shape for _, shape in here]
    if not same or not (alone or saved["optimizer"] == mine["optimizer"]):
        unlike = _difference(there, here)
    else:
        layers = saved.get("layers", mine["layers"])
        unlike = configurations.difference(layers, mine["layers"])
    if unlike:
        raise ValueError(
            "`directory` must hold the backup of the model that is trained. "
            f"Received: directory={str(directory)!r}, which holds "
            f"{_say(saved)}, and {_say(mine)} to train; {unlike}. Pass another "
            "directory, or delete this one to start anew."
        )


def _say(described):
    variables = described["variables"]
    numbers = sum(int(np.prod(shape)) for _, shape in variables)
    optimizer = described["optimizer"] or "no optimizer"
    return (
        f"model {described['model']!r} with {optimizer}, {len(variables)} "
        f"variables, {numbers} numbers"
    )


def _difference(there, here):
    for (path, shape), (other, found) in zip(there, here, strict=False):
        if shape != found:
            return f"{path} {tuple(shape)} there is {other} {tuple(found)} here"
    return "one has more variables, or another optimizer, than the other"
