"""Read the model, artifact, or arrays at a path on the command line."""

import os
import pathlib
import zipfile
from collections.abc import Mapping

import keras
import numpy as np

import keras_moe  # noqa: F401  registers its layers
from keras_moe.export.signature import as_functional
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.exit_codes import MISUSED

CONFIG = "config.json"


def is_model(path: pathlib.Path) -> bool:
    """Return whether a path is a model's file, not an artifact's folder.

    Raises:
        CliError: If the path does not exist, or is a file of another kind.
    """
    if not path.exists():
        raise CliError(
            "PATH must be a .keras file or the folder of an artifact. "
            f"Received: {path}, which does not exist. Check the name.",
            MISUSED,
        )
    if path.is_file() and path.suffix != ".keras":
        raise CliError(
            "PATH must be a .keras file or the folder of an artifact. "
            f"Received: the file {path}. Pass the folder that it is in, or "
            "save the model with model.save('model.keras').",
            MISUSED,
        )
    return path.is_file()


def load_model(path: pathlib.Path) -> keras.Model:
    """Load a `.keras` file without compiling the model.

    Raises:
        CliError: If the path is not a `.keras` file, or cannot be loaded.
    """
    if not is_model(path):
        raise CliError(
            f"MODEL must be a .keras file. Received: the folder {path}. Save "
            "the model with model.save('model.keras').",
            MISUSED,
        )
    _check_archive(path)
    try:
        model: keras.Model = keras.models.load_model(path, compile=False)
        return model
    except Exception as error:
        unknown = "Could not locate class" in str(error)
        remedy = (
            "Pass the module that defines and registers the class: --module "
            "my_layers."
            if unknown
            else "Save the model again with this version of Keras "
            f"({keras.version()})."
        )
        raise CliError(
            f"{path} could not be loaded. Received: {type(error).__name__}: "
            f"{one_reason(error)}. {remedy}"
        ) from error


def load_functional(path: pathlib.Path) -> keras.Model:
    """Load a `.keras` file as a functional model with named inputs."""
    return as_functional(load_model(path))


def _check_archive(path: pathlib.Path) -> None:
    """Raise if a file is not a zip file with a model's configuration."""
    fault = None
    try:
        with zipfile.ZipFile(path) as archive:
            if CONFIG not in archive.namelist():
                fault = f"a zip without {CONFIG}"
    except zipfile.BadZipFile:
        fault = f"{path.stat().st_size} bytes that are not a zip"
    if fault:
        raise CliError(
            f"{path} must be a file of model.save, a zip with the model's "
            f"configuration. Received: {fault}. The file is damaged or of "
            "another kind: save the model again."
        )


def read_data(
    path: pathlib.Path | None,
) -> dict[str, np.ndarray] | list[np.ndarray] | None:
    """Read the inputs of `--data`.

    Returns:
        The arrays as a dict by name, or as a list if they have no names.
        `None` if `path` is `None`.

    Raises:
        CliError: If the file is not a `.npz` file, or if its arrays do not
            have the same number of rows, at least one.
    """
    if path is None:
        return None
    try:
        found = np.load(path)
        arrays = dict(found) if isinstance(found, Mapping) else {"arr_0": found}
    except Exception as error:
        raise CliError(
            "`--data` must be a .npz file of the inputs, by name. Received: "
            f"{path}: {one_reason(error)}. Write one with "
            "numpy.savez(path, name=array).",
        ) from error
    lengths = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        shapes = {name: a.shape for name, a in arrays.items()}
        raise CliError(
            "`--data` must have arrays of the same number of rows, at least "
            f"one. Received: {shapes}. Cut them to the same length."
        )
    unnamed = [f"arr_{i}" for i in range(len(arrays))]
    if set(arrays) == set(unnamed):
        return [arrays[name] for name in unnamed]
    return arrays


def one_reason(error: Exception) -> str:
    """Return the first line of an error's message, or its class."""
    text = getattr(error, "strerror", None) or str(error).strip()
    return text.split("\n")[0][:200].rstrip(".") or type(error).__name__


def size_of(path: str | os.PathLike[str]) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(f.stat().st_size for f in files if f.is_file())
