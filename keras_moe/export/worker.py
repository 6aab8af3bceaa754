"""Write the artifact of a `.keras` file in a process of another backend.

    KERAS_BACKEND=tensorflow python -m keras_moe.export.worker JOB.json

The job consists of the model's file, the format, the folder to write into, the
modules whose import registers the user's classes, and the id of the process
that waits for the artifact.
"""

import importlib
import json
import os
import pathlib
import sys
import threading
import time

import keras

import keras_moe  # noqa: F401  registers its layers
from keras_moe.export.signature import as_functional
from keras_moe.export.writers import write


def main(job_path: str) -> None:
    """Do the job of a file, which `write_elsewhere` wrote."""
    job = json.loads(pathlib.Path(job_path).read_text())
    parent = job["parent"]
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    for module in job["modules"]:
        importlib.import_module(module)
    model = keras.models.load_model(job["model"], compile=False)
    write(as_functional(model), job["format"], pathlib.Path(job["folder"]))


def _end_with(parent: int) -> None:
    """End this process soon after its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
