"""Write one file of a model that several processes hold."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import keras

from keras_moe import _keras, checks
from keras_moe.distribution.environment import process_count, process_index
from keras_moe.files import follow_links, replace_file, scratch_beside


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write a `.keras` file from a job of several processes.

    Every process must call this function, because all of them may be needed to
    read a weight. Process 0 writes the file. It contains whole weights and is
    the same for every layout, so it loads on one device, on several, and on
    another backend. In a process without a job, this function writes what
    `model.save(path)` does.

    The file is written under another name and then renamed, so that a failed
    or killed save leaves the earlier file unchanged. The next save removes what
    a killed save left behind. (Keras's `model.save` writes the file in place,
    so a kill leaves a damaged file.)

    On JAX, all weights must fit into the memory of process 0's first device,
    and the weights that are sharded over processes into that of each host.

    Args:
        model: A built `keras.Model`. If it is compiled, the optimizer is saved,
            too.
        path: Path of the file, which must end in `.keras`. Only process 0
            writes to it. Links are followed.

    Raises:
        ValueError: If `model` is not a Keras model, or if `path` has another
            ending, is a folder, or is a circle of links.
        OSError: If the file cannot be written, for example on a full disk.

    Example:

    ```python
    keras_moe.distribution.save_model(model, "model.keras")
    ```
    """
    checks.check_model("model", model)
    named, file = _check_path(path)
    if process_index() > 0:
        _write(model, named)  # helps to read the weights, writes nothing
        return
    with contextlib.ExitStack() as at_end:
        scratch, error = _scratch(file, at_end)
        _write(model, scratch / named.name)
        if error is not None:
            raise error
        replace_file(scratch / named.name, file)


def _scratch(
    file: pathlib.Path, at_end: contextlib.ExitStack
) -> tuple[pathlib.Path, OSError | None]:
    """Return a folder beside the file, or a temporary folder and the error.

    In a job, the other processes wait until this one has read the model, so
    the error must be raised afterwards.
    """
    try:
        return at_end.enter_context(scratch_beside(file)), None
    except OSError as error:
        if process_count() == 1:
            raise
        folder = at_end.enter_context(tempfile.TemporaryDirectory())
        return pathlib.Path(folder), error


def _check_path(
    path: str | os.PathLike[str],
) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the path, and the path with links followed."""
    path = checks.check_path("path", path)
    if path.suffix != ".keras":
        raise ValueError(
            f"`path` must end in .keras. Received: path={str(path)!r}. Rename "
            "the file; it contains the whole model, including its weights."
        )
    try:
        file = follow_links(path)
    except (OSError, ValueError) as error:
        # A circle of links, a null byte, or a removed working directory.
        raise ValueError(
            f"`path` must be the path of a file. Received: path={str(path)!r}, "
            f"which is not a path: {error}. Choose another name."
        ) from None
    if path.is_dir():
        raise ValueError(
            f"`path` must be the path of a file. Received: path={str(path)!r}, "
            "a folder. Choose another name."
        )
    return path, file


def _write(model: keras.Model, path: pathlib.Path) -> None:
    """Write a file in process 0, while the others help to read the model."""
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


def _save_on_all(model: keras.Model, path: pathlib.Path) -> None:
    """Save the model in all processes, in all but process 0 temporarily.

    TensorFlow needs all workers to read a variable that is summed over them.
    """
    if process_index() == 0:
        model.save(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        model.save(pathlib.Path(folder, "model.keras"))


@contextlib.contextmanager
def _whole_on_one_device(model: keras.Model) -> Iterator[None]:
    """Put the whole model on one device inside, without a distribution.

    While Keras saves, it builds another optimizer to compare with. Inside a
    distribution, that would need all processes.
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
