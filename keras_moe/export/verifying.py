"""Runs an artifact in a process of its own and compares it with its model."""

import pathlib
import subprocess
import sys
import tempfile
import warnings

import keras
import numpy as np

from keras_moe.export import runtimes
from keras_moe.export.formats import (
    FORMATS,
    LOW_PRECISION_TOLERANCE,
    is_exact,
)
from keras_moe.export.probes import Probe, probes_of, unreached


def verify_folder(
    model: keras.Model,
    manifest: dict,
    folder: pathlib.Path,
    data=None,
    scratch: pathlib.Path | None = None,
) -> dict:
    """Compares an artifact with its model; returns what was seen.

    Args:
        model: from `as_functional`.
        manifest: of the artifact.
        folder: that the artifact is in.
        data: see `probes_of`.
        scratch: Folder for temporary files. `None` is the system's.

    Returns:
        `largest_difference`, `tolerance`, `shapes` (of each batch's inputs)
        and `unreached` (experts that no batch asked, by block).

    Raises:
        ValueError: where a difference exceeds the tolerance.
        RuntimeError: where the artifact does not run.
    """
    probes = probes_of(model, data)
    missing: dict[str, list[int]] = {}
    for path, expert in unreached(probes):
        missing.setdefault(path, []).append(expert)
    if missing:
        warnings.warn(
            f"No input reached the experts {missing}: whether the artifact has "
            "them right is not known. Pass `data` that the model was made for.",
            stacklevel=3,
        )
    names = [t.name for t in model.inputs]
    outputs = _run(manifest["format"], folder, names, probes, scratch)
    tolerance = _tolerance(model, manifest)
    largest = max(
        _largest_difference(probe.observation.outputs, received)
        for probe, received in zip(probes, outputs, strict=True)
    )
    if not largest <= tolerance:
        raise ValueError(
            f"The {manifest['format']} artifact must say what its model says, "
            f"to {tolerance:g} of the largest output. Received: a difference "
            f"of {largest:g}. `export` does not keep such an artifact but with "
            "verify=False; please report it."
        )
    return {
        "largest_difference": largest,
        "tolerance": tolerance,
        "shapes": [[list(x.shape) for x in p.batch] for p in probes],
        "unreached": missing,
    }


def _run(format, folder, names, probes: list[Probe], scratch):
    """The outputs of each probe, by the artifact in its own process."""
    arrays = {
        f"{i}/{name}": array
        for i, probe in enumerate(probes)
        for name, array in zip(names, probe.batch, strict=True)
    }
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        inputs, outputs = (
            str(pathlib.Path(place, f"{name}.npz"))
            for name in ("inputs", "outputs")
        )
        np.savez(inputs, **arrays)  # type: ignore[arg-type]
        artifact = str(pathlib.Path(folder, FORMATS[format].file))
        script = [sys.executable, "-P", runtimes.__file__]
        done = subprocess.run(
            [*script, format, artifact, inputs, outputs],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(
                f"The {format} artifact must run in its own runtime. Received:"
                f"\n{done.stderr[-3000:]}"
            )
        with np.load(outputs) as found:
            return [
                [
                    found[f"{i}/{j}"]
                    for j in range(len(probe.observation.outputs))
                ]
                for i, probe in enumerate(probes)
            ]


def _largest_difference(expected, received):
    """The largest difference, in units of the largest output or of one."""
    largest = 0.0
    for mine, other in zip(expected, received, strict=True):
        if mine.shape != other.shape:
            return float("inf")
        # The maximum of anything and NaN is NaN, and fails.
        largest = float(np.maximum(largest, difference(mine, other)[1]))
    return largest


def difference(mine: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Returns the largest difference of two arrays of one shape, and the same
    in units of the largest element of `mine`, or of one."""
    mine, other = mine.astype("float64"), other.astype("float64")
    absolute = np.abs(mine - other).max(initial=0.0)
    return absolute, absolute / max(1.0, np.abs(mine).max(initial=0.0))


def _tolerance(model, manifest):
    if is_exact(model):
        return FORMATS[manifest["format"]].tolerance
    return LOW_PRECISION_TOLERANCE
