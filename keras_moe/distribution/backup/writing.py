"""Write a save with all processes, and raise in all of them if it fails."""

import pathlib
from typing import Any

import keras

from keras_moe.distribution.backup import generations, state
from keras_moe.distribution.backup.processes import Processes


def write(
    directory: pathlib.Path,
    keep: int,
    model: keras.Model,
    own: state.Own,
    described: dict[str, Any],
    processes: Processes,
) -> None:
    """Write a save, and remove saves that are not kept.

    Args:
        directory: Folder of the saves.
        keep: Number of saves to keep.
        model: Model that is trained.
        own: State of this process.
        described: Entries of the manifest.
        processes: The processes of the training. The chief writes.

    Raises:
        OSError: If the chief cannot write, in every process.
    """
    packed = processes.gather_bytes(state.pack(own))
    arrays = state.arrays_of(model, processes)

    def fill(folder: pathlib.Path) -> dict[str, Any]:
        state.write_arrays(folder / state.ARRAYS, arrays)
        for index, data in enumerate(packed):
            (folder / state.own_name(index)).write_bytes(data)
        return described

    error: Exception | None = None
    if processes.index == 0:
        try:
            generations.write(directory, fill, keep)
        except Exception as raised:  # the others wait for `agree`
            error = raised
    for _ in arrays:  # all processes gather each array
        pass
    processes.agree(error)
