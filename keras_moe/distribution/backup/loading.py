"""Load the weights of a save, and the state of the training within."""

import pathlib
import warnings

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


def load_backup(model: keras.Model, directory: str | pathlib.Path) -> None:
    """Load the weights of the newest save of `BackupAndResume`.

    The optimizer is left alone, and the model need not be compiled. It may lie
    on other devices, or on one: so a training of several processes becomes a
    `.keras` file. Every process of a model that several hold must call it.
    Nothing in `directory` is changed.

    Args:
        model: built, and of the same configuration as the one that was saved.
        directory: of the saves.

    Raises:
        FileNotFoundError: if there is no save.
        ValueError: if it is another model's, or if all saves are torn.
        OSError: if a file cannot be read.

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
            "`directory` must hold a save of BackupAndResume. Received: "
            f"directory={str(directory)!r}, without one. Train with the "
            "callback before."
        )
    mine = identity.describe(model, processes, optimizer=False)
    identity.check_same(directory, manifest, mine)
    variables = state.own_variables_of(model)
    state.load_arrays(generation / state.ARRAYS, variables, processes)


def load_training(
    model: keras.Model,
    generation: Path,
    manifest: dict,
    described: dict,
    processes: Processes,
) -> tuple[state.Own, metric_states.MetricStates]:
    """Load the variables of a save; fail on all processes if one cannot.

    Args:
        model: That trains.
        generation, manifest: Of the save.
        described: The configuration of the model, as of `describing`.
        processes: That train it.

    Returns:
        What this process had of its own, and what the metrics had counted.
    """

    def read(index):
        return state.unpack(generation / state.own_name(index))

    error = own = metrics = None
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


def first_epoch(directory: Path, manifest: dict, epochs: int) -> int:
    """Return the epoch with which `fit` begins after a save.

    It warns if fewer epochs are to be trained than are begun.

    Args:
        directory: Of the saves.
        manifest: Of the save.
        epochs: Of `fit`.
    """
    done = manifest["epoch"]
    begun = done + (manifest["batch"] > 0)
    if epochs < begun:
        warnings.warn(
            f"`epochs` must be {begun} or more: so many are begun in "
            f"{str(directory)!r}. Received: epochs={epochs}. The model is "
            "loaded and not trained.",
            stacklevel=3,
        )
    over = epochs <= (manifest["finished"] or done)
    return epochs if over else done


def warn_of_other_batches(
    directory: Path, manifest: dict, steps: int | None
) -> None:
    """Warn if a save within an epoch is of an epoch of another length.

    Args:
        directory: Of the saves.
        manifest: Of the save.
        steps: Batches of the epoch now; None if they are not known.
    """
    saved = manifest.get("steps")
    if None in (steps, saved) or steps == saved:
        return
    warnings.warn(
        f"The save in {str(directory)!r} is after batch {manifest['batch']} "
        f"of {saved} of an epoch, which now has {steps} batches. The first "
        "ones are skipped, and may not be those that were trained. Pass the "
        "same data in the same global batches.",
        stacklevel=3,
    )
