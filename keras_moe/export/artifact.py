"""An artifact on disk, to be run like a function."""

import os
import pathlib

import numpy as np
from keras import tree

from keras_moe import checks
from keras_moe.export import manifest as manifests
from keras_moe.export import runtimes
from keras_moe.export.formats import FORMATS, require_packages


class Artifact:
    """An exported model in its runtime.

    `load` makes it, and documents the checks, the arguments, and the errors.

    Args:
        path, threads: See `load`.

    Attributes:
        manifest: Dict, the content of `moe.json`.

    Call arguments:
        inputs: An array, a list of arrays, or a dict by name.

    Returns:
        The list of output arrays.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None):
        threads = checks.check_optional_int("threads", threads)
        self.manifest = manifests.read_checked(path, stacklevel=4)
        format = self.manifest["format"]
        # Only what runs it: the last of the packages, or the only one.
        require_packages(format, FORMATS[format].packages[-1:])
        file = pathlib.Path(path, FORMATS[format].file)
        try:
            self._run = runtimes.load(format, str(file), threads)
        except (ImportError, runtimes.RefusedError):
            raise
        except Exception as error:
            reason = str(error).rstrip().rstrip(".")
            raise RuntimeError(
                f"{path} could not be loaded by its runtime. Received: "
                f"{type(error).__name__}: {reason}. The artifact is damaged, "
                "or the runtime is of another version: export the model again."
            ) from error

    def __call__(self, inputs) -> list[np.ndarray]:
        """Runs the model; see the class."""
        return self._run(named_inputs(inputs, self.manifest["inputs"]))


def load(path: str | os.PathLike, threads: int | None = None) -> Artifact:
    """Load an artifact into its runtime.

    All files are checked against the checksums in `moe.json` first. An artifact
    that was written before keras_moe stored checksums loads with one warning.
    Checksums find damage, not malice: whoever changes a file can write a new
    checksum. A SavedModel is a program that runs with your rights, so load
    artifacts only from people whom you trust. A PyTorch program that would be
    unpickled, or would run other code of its author, is refused; see
    `SECURITY.md`.

    Args:
        path: Folder that `export` wrote.
        threads: Number of threads that the runtime may use. `None` (the
            default) leaves the choice to the runtime.

    Returns:
        An `Artifact`: a function of an array, a list of arrays, or a dict by
        name, which returns the list of output arrays.

    Raises:
        FileNotFoundError: If the folder holds no `moe.json`.
        ValueError: If `moe.json` or a file that it lists is damaged, or if a
            PyTorch program holds what keras_moe does not write.
        ImportError: If the package of the runtime is missing.
        RuntimeError: If the runtime cannot load the artifact.
        OSError: If a file cannot be read.

    Example:

    ```python
    served = keras_moe.export.load("saved_models/digits")
    (answer,) = served(x)
    ```
    """
    return Artifact(path, threads)


def named_inputs(inputs, specs: list[dict]) -> dict[str, np.ndarray]:
    """Returns arrays by name, in the order of the manifest's inputs.

    Args:
        inputs: an array, a list of arrays, or a dict by name.
        specs: dicts with `name` and `dtype`.

    Raises:
        ValueError: where there are more or fewer than the model takes, or a
            name is none of its.
    """
    names = [spec["name"] for spec in specs]
    if isinstance(inputs, dict):
        arrays = [inputs.get(name) for name in names]
        fits = set(inputs) == set(names)
    else:
        arrays = tree.flatten(inputs)
        fits = len(arrays) == len(names)
    if not fits:
        received = sorted(inputs) if isinstance(inputs, dict) else len(arrays)
        raise ValueError(
            f"`inputs` must be {len(names)} arrays, or a dict of {names}. "
            f"Received: {received}. Pass one for each input of the model."
        )
    return {
        spec["name"]: _cast(array, spec["dtype"])
        for spec, array in zip(specs, arrays, strict=True)
    }


def _cast(array, dtype):
    array = np.asarray(array)
    return array if dtype == "string" else array.astype(dtype)
