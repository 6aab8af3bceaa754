"""Save a model from two processes, one of which is killed.

Run `python kill_saves.py FOLDER`. The first attempt saves a model and counts
the lines that run meanwhile. In the next attempts, both processes save other
weights, and the chief is killed at one of these lines. In the last but one, the
other process is killed, and the last attempt runs to its end. Each attempt
begins with a check of the file that the previous one left.
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

PARTS = 5  # parts of a save; the chief is killed in four of them
KILLED_CHIEF = range(1, PARTS)
KILLED_OTHER = PARTS
LAST = PARTS + 1
each_step.FILES_OF["kill"] += (zipfile.__file__,)


def version_of(model):
    """Return the number in the head's kernel."""
    kernel, _ = model.get_layer("head").get_weights()
    [number] = np.unique(kernel)
    return int(number)


def set_version(model, version):
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([np.full_like(kernel, version), bias])


def check(folder):
    """Assert that the file is whole; return the version of its weights."""
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
        sys.exit("restart all processes")


if __name__ == "__main__":
    main(*sys.argv[1:])
