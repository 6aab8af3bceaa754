"""Write a save: every process takes part, and all fail together."""

import pathlib

import keras

from keras_moe.distribution.backup import generations, state
from keras_moe.distribution.backup.processes import Processes


def write(
    directory: pathlib.Path,
    keep: int,
    model: keras.Model,
    own: state.Own,
    described: dict,
    processes: Processes,
) -> None:
    """Write a save, and remove those that are not kept.

    Args:
        directory: Of the saves.
        keep: How many saves to keep.
        model: That trains.
        own: What this process has of its own.
        described: What the manifest holds.
        processes: That train the model; the chief writes.

    Raises:
        OSError: If the chief cannot write; on every process.
    """
    packed = processes.gather_bytes(state.pack(own))
    arrays = state.arrays_of(model, processes)

    def fill(folder):
        state.write_arrays(folder / state.ARRAYS, arrays)
        for index, data in enumerate(packed):
            (folder / state.own_name(index)).write_bytes(data)
        return described

    error = None
    if processes.index == 0:
        try:
            generations.write(directory, fill, keep)
        except Exception as raised:  # the others wait to hear of it
            error = raised
    for _ in arrays:  # what is gathered, is gathered by all
        pass
    processes.agree(error)
