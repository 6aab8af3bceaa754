"""Describe a model and its optimizer, and compare it with a saved one."""

from typing import Any

import keras
import numpy as np

from keras_moe.distribution.backup import configurations, state
from keras_moe.distribution.backup.processes import Processes


def describe(
    model: keras.Model, processes: Processes, optimizer: bool = True
) -> dict[str, Any]:
    """Return the entries of a manifest that describe a model.

    Args:
        model: A built model.
        processes: The processes of the training.
        optimizer: Whether to describe the optimizer, too. Default: `True`.
    """
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


def check_same(
    directory: state.Path, saved: dict[str, Any], mine: dict[str, Any]
) -> None:
    """Raise if a backup belongs to another model.

    Names may differ, because Keras numbers them in each process. If `mine` has
    no optimizer, the variables of the saved optimizer are not compared. A
    backup of schema 1 has no configuration to compare.

    Args:
        directory: Folder of the backup.
        saved: Manifest of the backup.
        mine: From `describe`.

    Raises:
        ValueError: If the models or optimizers differ.
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
            "`directory` must contain the backup of the model that is trained. "
            f"Received: directory={str(directory)!r}, which contains "
            f"{_say(saved)}, and {_say(mine)} to train; {unlike}. Pass another "
            "directory, or delete this one to start again."
        )


def _say(described: dict[str, Any]) -> str:
    variables = described["variables"]
    numbers = sum(int(np.prod(shape)) for _, shape in variables)
    optimizer = described["optimizer"] or "no optimizer"
    return (
        f"model {described['model']!r} with {optimizer}, {len(variables)} "
        f"variables, {numbers} numbers"
    )


def _difference(there: list[list[Any]], here: list[list[Any]]) -> str:
    for (path, shape), (other, found) in zip(there, here, strict=False):
        if shape != found:
            return f"{path} {tuple(shape)} there is {other} {tuple(found)} here"
    return "one has more variables, or another optimizer, than the other"
