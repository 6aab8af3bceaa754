"""Load the weights of a save, and the state of its training."""

import os
import pathlib
import warnings
from typing import Any

import keras

from keras_moe import checks
from keras_moe.distribution.backup import (
    choosing,
    identity,
    metric_states,
    state,
)
from keras_moe.distribution.backup.processes import Processes, processes_of

Path = pathlib.Path


def load_backup(model: keras.Model, directory: str | os.PathLike[str]) -> None:
    """Load the weights of the newest save of `BackupAndResume`.

    The optimizer is not changed, and the model need not be compiled. The
    devices may differ from those of the save, so you can write a training of
    several processes as a `.keras` file in one process. If several processes
    hold the model, each of them must call this function. Nothing in `directory`
    is changed.

    Args:
        model: A built model with the configuration of the saved one.
        directory: Str or path. Folder of the saves.

    Raises:
        FileNotFoundError: If there is no save.
        ValueError: If `model` is not a Keras model, if the save belongs to
            another model, or if all saves are damaged.
        OSError: If a file cannot be read.

    Example:

    ```python
    model = make_model()
    keras_moe.distribution.load_backup(model, "backup")
    keras_moe.distribution.save_model(model, "model.keras")
    ```
    """
    checks.check_model("model", model)
    directory = checks.check_path("directory", directory)
    processes = processes_of(model)
    generation, manifest = choosing.choose(directory, processes)
    if generation is None:
        raise FileNotFoundError(
            "`directory` must contain a save of BackupAndResume. Received: "
            f"directory={str(directory)!r}, without one. Train with the "
            "callback first."
        )
    mine = identity.describe(model, processes, optimizer=False)
    identity.check_same(directory, manifest, mine)
    variables = state.own_variables_of(model)
    state.load_arrays(generation / state.ARRAYS, variables, processes)


def load_training(
    model: keras.Model,
    generation: Path,
    manifest: dict[str, Any],
    described: dict[str, Any],
    processes: Processes,
) -> tuple[state.Own, metric_states.MetricStates]:
    """Load the variables and the state of a save.

    Args:
        model: Model that is trained.
        generation: Folder of the save.
        manifest: Manifest of the save.
        described: Description of the model, from `identity.describe`.
        processes: The processes of the training.

    Returns:
        The saved state of this process, and the states of the metrics.

    Raises:
        ValueError: If the save belongs to another model or is malformed.
        OSError: If a file cannot be read, or if another process fails.
    """

    def read(index: int) -> state.Own:
        return state.unpack(generation / state.own_name(index))

    error: Exception | None = None
    own = metrics = None
    try:
        identity.check_same(generation.parent, manifest, described)
        path = generation / state.ARRAYS
        state.load_arrays(path, state.variables_of(model), processes)
        own = read(processes.index % manifest["processes"])
        metrics = metric_states.saved_states(
            lambda index: read(index).metrics, manifest, processes
        )
    except (OSError, ValueError) as raised:
        error = raised
    processes.agree(error)
    return own, metrics  # type: ignore[return-value]


def first_epoch(directory: Path, manifest: dict[str, Any], epochs: int) -> int:
    """Return the epoch with which `fit` starts after a save.

    It warns if `epochs` is below the number of epochs that have started.

    Args:
        directory: Folder of the saves.
        manifest: Manifest of the save.
        epochs: The `epochs` of `fit`.
    """
    done = manifest["epoch"]
    begun = done + (manifest["batch"] > 0)
    if epochs < begun:
        warnings.warn(
            f"`epochs` must be {begun} or more, because {begun} epochs have "
            f"started in {str(directory)!r}. Received: epochs={epochs}. The "
            "model is loaded but not trained.",
            stacklevel=3,
        )
    over = epochs <= (manifest["finished"] or done)
    return epochs if over else done


def warn_of_other_batches(
    directory: Path, manifest: dict[str, Any], steps: int | None
) -> None:
    """Warn if the epoch of a save has another number of batches now.

    Args:
        directory: Folder of the saves.
        manifest: Manifest of a save within an epoch.
        steps: Number of batches of the epoch now; `None` if it is unknown.
    """
    saved = manifest.get("steps")
    if None in (steps, saved) or steps == saved:
        return
    warnings.warn(
        f"The save in {str(directory)!r} is after batch {manifest['batch']} "
        f"of {saved} of an epoch, which now has {steps} batches. The first "
        "batches are skipped, but may differ from those that were trained. "
        "Pass the same data in the same global batches.",
        stacklevel=3,
    )
