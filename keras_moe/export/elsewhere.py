"""Sends a model to another backend, as a `.keras` file."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras

from keras_moe import _keras

OWN = ("keras", "keras_moe", "builtins", "__main__")


def write_elsewhere(
    model: keras.Model, format: str, backend: str, folder: pathlib.Path
) -> None:
    """Saves the model and has a process of `backend` write the artifact.

    Temporary files lie beside `folder`, so that whoever removes what a killed
    export left removes them, too.

    Raises:
        RuntimeError: with what that process said, where it failed.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        path = pathlib.Path(scratch, "model.keras")
        model.save(path)
        job = {
            "model": str(path),
            "format": format,
            "folder": str(folder),
            "modules": sorted(_modules_of(model)),
            "parent": os.getpid(),
        }
        job_path = pathlib.Path(scratch, "job.json")
        job_path.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "keras_moe.export.worker", str(job_path)],
            env=_environment(backend, scratch),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(
            f"The format {format!r} is written by the {backend} backend, which "
            "loads the model from a file; there it failed. Received:\n"
            f"{done.stderr[-3000:]}\nClasses of your own must be registered "
            "(keras.saving.register_keras_serializable) in a module that can "
            "be imported, not in a notebook or script."
        )


def _environment(backend, scratch):
    paths = [path or os.getcwd() for path in sys.path]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TMPDIR": scratch,
    }


def _modules_of(model):
    """The modules, beside ours and Keras's, that define the layers."""
    for layer in _keras.every_layer_of(model):
        for kind in type(layer).__mro__:
            if kind.__module__.split(".")[0] not in OWN:
                if issubclass(kind, keras.layers.Layer):
                    yield kind.__module__
