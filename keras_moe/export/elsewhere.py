"""Write an artifact with another backend, in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import keras

from keras_moe import _keras

OWN = ("keras", "keras_moe", "builtins", "__main__")


def write_elsewhere(
    model: keras.Model, format: str, backend: str, folder: pathlib.Path
) -> None:
    """Save a model, and write its artifact in a process of another backend.

    Temporary files are written beside `folder`, so that they are removed
    together with what a killed export leaves behind.

    Args:
        model: From `as_functional`.
        format: One of `FORMATS` that `backend` writes.
        backend: Name of the Keras backend that writes the artifact.
        folder: Empty folder to write into.

    Raises:
        RuntimeError: If the process fails. The message ends with its stderr.
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
            f"The format {format!r} is written by the {backend} backend, in a "
            "process that loads the model from a file. The process failed. "
            f"Received:\n{done.stderr[-3000:]}\nRegister your own classes "
            "(keras.saving.register_keras_serializable) in a module that can "
            "be imported, not in a notebook or script."
        )


def _environment(backend: str, scratch: str) -> dict[str, str]:
    paths = [path or os.getcwd() for path in sys.path]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TMPDIR": scratch,
    }


def _modules_of(model: keras.Model) -> Iterator[str]:
    """Yield the modules of the user that define layers of a model."""
    for layer in _keras.every_layer_of(model):
        for kind in type(layer).__mro__:
            if kind.__module__.split(".")[0] not in OWN:
                if issubclass(kind, keras.layers.Layer):
                    yield kind.__module__
