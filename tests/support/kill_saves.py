"""Saves as one of two processes that are killed; `python THIS FOLDER`.

The first attempt saves a model, and counts the lines that run meanwhile. In
those that follow, one of the processes is killed while both save other weights:
the chief at one of these lines, and at last the other one. Each attempt begins
by looking at what the one before left; the last one is not killed.
"""

import os
import pathlib
import sys
import zipfile

if os.environ["KERAS_BACKEND"] != "tensorflow":
    import light_keras  # noqa: F401

import each_step  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from each_step import AtStep, kill  # noqa: E402
from kill_worker import ATTEMPT, BACKEND, MAKE  # noqa: E402

from keras_moe.distribution import save_model  # noqa: E402
from keras_moe.distribution.environment import (  # noqa: E402
    initialize,
    process_index,
)

PARTS = 5  # of a save: the chief is killed in four of them
KILLED_CHIEF = range(1, PARTS)
KILLED_OTHER = PARTS
LAST = PARTS + 1
each_step.FILES_OF["kill"] += (zipfile.__file__,)


def version_of(model):
    """The number that all weights of the head hold."""
    kernel, _ = model.get_layer("head").get_weights()
    [number] = np.unique(kernel)
    return int(number)


def set_version(model, version):
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([np.full_like(kernel, version), bias])


def check(folder):
    """The file is whole, and of the first version, or of a killed save."""
    saved = keras.saving.load_model(folder / "model.keras", compile=False)
    assert 0 <= version_of(saved) < ATTEMPT
    return version_of(saved)


def main(folder):
    folder = pathlib.Path(folder)
    initialize()
    model = MAKE[BACKEND]()
    if ATTEMPT and process_index() == 0:
        with open(folder / "versions.txt", "a") as file:
            print(check(folder), file=file)
    set_version(model, ATTEMPT)
    step = -1
    if ATTEMPT in KILLED_CHIEF and process_index() == 0:
        lines = int((folder / "lines.txt").read_text())
        step = 1 + lines * ATTEMPT // PARTS
    elif ATTEMPT == KILLED_OTHER and process_index() == 1:
        step = 1
    with AtStep(step, kill) as at:
        save_model(model, folder / "model.keras")
    if ATTEMPT == 0 and process_index() == 0:
        (folder / "lines.txt").write_text(str(at.count))
    if ATTEMPT < LAST:
        sys.exit("start all again")


if __name__ == "__main__":
    main(*sys.argv[1:])
