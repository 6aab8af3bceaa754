"""One file of a model that several processes hold."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import keras

from keras_moe import _keras, checks
from keras_moe.distribution.environment import process_count, process_index
from keras_moe.files import follow_links, replace_file, scratch_beside


def save_model(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes a `.keras` file from a job of several processes.

    Every process calls it, as it may take all of them to read a weight;
    process 0 writes. The file holds whole weights, and is the same whatever
    the layout: it loads on one device, on more, and on another backend. Alone
    it is `model.save(path)`.

    The file is written beside and renamed, so that a save that fails or is
    killed leaves the earlier one. What a killed save left beside the file is
    removed by the next one. (Keras's `model.save` writes the file in place: a
    kill leaves a torn file.)

    On JAX all weights must fit into the memory of process 0's first device
    and those that are sharded over processes into that of each host.

    Args:
        model: built; with its optimizer where it is compiled.
        path: of the file, ending in .keras. Process 0 alone writes to it. A
            link is followed.

    Raises:
        ValueError: for another ending, or if `path` is a folder or a circle of
            links.
        OSError: If the file cannot be written, e.g. on a full disk.
    """
    checks.check_model("model", model)
    named, file = _check_path(path)
    if process_index() > 0:
        _write(model, named)  # reads its part, and writes nothing there
        return
    with contextlib.ExitStack() as at_end:
        scratch, error = _scratch(file, at_end)
        _write(model, scratch / named.name)
        if error is not None:
            raise error
        replace_file(scratch / named.name, file)


def _scratch(file, at_end):
    """Return a folder beside the file, or another one and why it failed.

    The other processes wait for this one to take part in reading the model.
    """
    try:
        return at_end.enter_context(scratch_beside(file)), None
    except OSError as error:
        if process_count() == 1:
            raise
        folder = at_end.enter_context(tempfile.TemporaryDirectory())
        return pathlib.Path(folder), error


def _check_path(path):
    """Returns the path, and where its links lead."""
    path = checks.check_path("path", path)
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must end in .keras. Received: path={str(path)!r}. The "
            "file holds the whole model; its weights alone are in it, too."
        )
    try:
        file = follow_links(path)
    except (OSError, ValueError) as error:
        # A circle of links, a null byte, or a working directory that is gone.
        raise ValueError(
            f"`path` must be a file's. Received: path={str(path)!r}, which is "
            f"no path: {error}. Choose another name."
        ) from None
    if path.is_dir():
        raise ValueError(
            f"`path` must be a file's. Received: path={str(path)!r}, a "
            "folder. Choose another name."
        )
    return path, file


def _write(model, path):
    """Writes a file on process 0, with the others' help."""
    backend = keras.backend.backend()
    if process_count() == 1:
        model.save(path)
    elif backend == "jax":
        with _whole_on_one_device(model):
            if process_index() == 0:
                model.save(path)
    elif backend == "torch" and "save" not in vars(model):
        if process_index() == 0:
            model.save(path)
    elif backend == "torch":  # data_parallel's, or shard_experts's
        model.save(path)
    else:
        _save_on_all(model, path)


def _save_on_all(model, path):
    """TensorFlow reads a sum over the workers by asking all of them."""
    if process_index() == 0:
        model.save(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save(pathlib.Path(folder, "model.keras"))


@contextlib.contextmanager
def _whole_on_one_device(model) -> Iterator[None]:
    """Takes the model off the mesh, of which other processes hold parts.

    Keras makes an optimizer to compare with while it saves; within a
    distribution that is work of all processes, who would wait for it.
    """
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    variables = list(model.variables)
    if model.optimizer is not None:
        variables += model.optimizer.variables
    kept = [variable.value for variable in variables]
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        for variable, value in zip(variables, kept, strict=True):
            if value.is_fully_addressable or value.is_fully_replicated:
                whole = np.asarray(value)
            else:
                whole = np.asarray(process_allgather(value, tiled=True))
            one = jax.device_put(whole, jax.local_devices()[0])
            _keras.put_value(variable, one)
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            _keras.put_value(variable, value)
        keras.distribution.set_distribution(distribution)
