"""Which save to load: the chief's choice, on every process."""

import json
import pathlib
import warnings

import keras

from keras_moe.distribution.backup import generations, state
from keras_moe.distribution.backup.processes import Processes, processes_of
from keras_moe.layers import checks

Path = pathlib.Path


def load_backup(model: keras.Model, directory: str | pathlib.Path) -> None:
    """Loads the weights of the newest save of `BackupAndResume`.

    The optimizer is left alone, and the model need not be compiled. It may lie
    on other devices, or on one: so a training of several processes becomes a
    `.keras` file. Every process of a model that several hold must call it.

    Args:
        model: built, and the same as the one that was saved.
        directory: of the saves.

    Raises:
        FileNotFoundError: where there is no save.
        ValueError: where it is another model's, or torn ones only.
    """
    checks.check_model("model", model)
    directory = checks.check_path("directory", directory)
    processes = processes_of(model)
    generation, manifest = choose(directory, processes)
    if generation is None:
        raise FileNotFoundError(
            "`directory` must hold a save of BackupAndResume. Received: "
            f"directory={str(directory)!r}, without one. Train with the "
            "callback before."
        )
    mine = state.describe(model, processes, optimizer=False)
    state.check_same(directory, manifest, mine)
    variables = state.own_variables_of(model)
    state.load_arrays(generation / state.ARRAYS, variables, processes)


def choose(directory: Path, processes: Processes) -> tuple[Path | None, dict]:
    """Returns the newest whole save and its manifest, or `(None, {})`.

    Every process must call it. The chief looks; newer saves that are torn are
    removed with a warning.

    Raises:
        ValueError: where there are torn ones only; OSError on other processes.
        OSError: where a process does not see what the chief chose.
    """
    error, found = None, b""
    if processes.index == 0:
        try:
            found = json.dumps(_newest(directory)).encode()
        except (OSError, ValueError) as raised:
            error = raised
    processes.agree(error)
    name, manifest = json.loads(processes.from_chief(found))
    if name is None:
        return None, {}
    generation = directory / name
    processes.agree(_blindness(generation))
    return generation, manifest


def _newest(directory):
    generation, torn = generations.newest_whole(directory)
    if generation is None and torn:
        raise ValueError(
            "`directory` must hold a save that is whole. Received: "
            f"directory={str(directory)!r}, with {torn}. Delete it to start "
            "anew."
        )
    if generation is None:
        return None, {}
    if torn:
        warnings.warn(
            f"Torn saves are passed over: {torn}. {generation.name} is loaded.",
            stacklevel=2,
        )
        for newer in generations.generations(directory)[: len(torn)]:
            generations.remove(newer)
    return generation.name, generations.read_manifest(generation)


def _blindness(generation):
    if generation.is_dir():
        return None
    return OSError(
        "`directory` must lie on a file system that all processes see. "
        f"Received: {str(generation)!r}, which the chief sees and this process "
        "does not. Pass a shared folder."
    )
