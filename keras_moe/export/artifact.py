"""Load an artifact from disk and call it like a function."""

import os
import pathlib
from typing import Any

import numpy as np
from keras import tree

from keras_moe import checks
from keras_moe.export import manifest as manifests
from keras_moe.export import runtimes
from keras_moe.export.formats import FORMATS, require_packages


class Artifact:
    """Run an exported model in its runtime.

    `load` returns an `Artifact`. Its docstring describes the checks, the
    arguments, and the errors.

    Args:
        path, threads: See `load`.

    Attributes:
        manifest: Dict, the content of `moe.json`.

    Call arguments:
        inputs: Array, list of arrays, or dict from input names to arrays. The
            arrays are cast to the dtypes of the model's inputs.

    Returns:
        List of the output arrays.

    Example:

    ```python
    served = keras_moe.export.load("saved_models/digits")
    print(served.manifest["format"])
    (answer,) = served(x)
    ```
    """

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None
    ):
        threads = checks.check_optional_int("threads", threads)
        self.manifest = manifests.read_checked(path, stacklevel=4)
        format = self.manifest["format"]
        # The last package is the runtime; the others only write artifacts.
        require_packages(format, FORMATS[format].packages[-1:])
        file = pathlib.Path(path, FORMATS[format].file)
        try:
            self._run = runtimes.load(format, str(file), threads)
        except (ImportError, runtimes.RefusedError):
            raise
        except Exception as error:
            reason = str(error).rstrip().rstrip(".")
            raise RuntimeError(
                f"`path` must be an artifact that its runtime can load. "
                f"Received: {path}, which failed with {type(error).__name__}: "
                f"{reason}. The artifact is damaged, or the runtime has "
                "another version: export the model again."
            ) from error

    def __call__(self, inputs: Any) -> list[np.ndarray]:
        """Return the model's outputs; see the class."""
        return self._run(named_inputs(inputs, self.manifest["inputs"]))


def load(path: str | os.PathLike[str], threads: int | None = None) -> Artifact:
    """Load an artifact into its runtime.

    All files are first compared with the checksums in `moe.json`. An artifact
    that was written before keras_moe stored checksums loads with a warning.
    Checksums detect damage, not tampering: anyone who changes a file can write
    a new checksum. A SavedModel is a program that runs with your permissions,
    so load artifacts only from sources that you trust. A PyTorch program that
    would be unpickled, or would run other code of its author, is refused; see
    `SECURITY.md`.

    Args:
        path: Folder that `export` wrote.
        threads: Number of threads that the runtime may use. `None` (the
            default) leaves the choice to the runtime.

    Returns:
        An `Artifact`. Call it with an array, a list of arrays, or a dict from
        input names to arrays; it returns the list of output arrays.

    Raises:
        FileNotFoundError: If the folder does not contain a `moe.json`.
        ValueError: If `threads` is not an integer above 0, if `moe.json` or a
            file that it lists is damaged, or if a PyTorch program contains
            anything that keras_moe does not write.
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


def named_inputs(
    inputs: Any, specs: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Return arrays by name, in the order of the manifest's inputs.

    Args:
        inputs: Array, list of arrays, or dict from input names to arrays.
        specs: Dicts with the `name` and `dtype` of each input.

    Raises:
        ValueError: If the number of arrays is not the number of `specs`, or if
            the names are not those of `specs`.
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
            f"Received: {received}. Pass one array per input of the model."
        )
    return {
        spec["name"]: _cast(array, spec["dtype"])
        for spec, array in zip(specs, arrays, strict=True)
    }


def _cast(array: Any, dtype: str) -> np.ndarray:
    values = np.asarray(array)
    return values if dtype == "string" else values.astype(dtype)
