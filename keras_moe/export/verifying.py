"""Run an artifact in a process of its own and compare it with its model."""

import pathlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

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
    manifest: dict[str, Any],
    folder: pathlib.Path,
    data: Any = None,
    scratch: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compare the outputs of an artifact with those of its model.

    Args:
        model: From `as_functional`.
        manifest: Manifest of the artifact.
        folder: The artifact's folder.
        data: See `probes_of`.
        scratch: Folder for temporary files. `None` (the default) is the
            system's folder for temporary files.

    Returns:
        Dict of `largest_difference`, `tolerance`, `shapes` (of the inputs of
        each batch), and `unreached` (the experts that no batch reaches, by
        block).

    Raises:
        ValueError: If a difference exceeds the tolerance.
        RuntimeError: If the artifact does not run.
    """
    probes = probes_of(model, data)
    missing: dict[str, list[int]] = {}
    for path, expert in unreached(probes):
        missing.setdefault(path, []).append(expert)
    if missing:
        warnings.warn(
            f"No input reached the experts {missing}, so they were not "
            "verified. Pass `data` of the kind that the model was trained on.",
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
            f"The outputs of the {manifest['format']} artifact must equal the "
            f"model's within {tolerance:g} of the largest output. Received: a "
            f"difference of {largest:g}. Please report it. `export` keeps such "
            "an artifact only with verify=False."
        )
    return {
        "largest_difference": largest,
        "tolerance": tolerance,
        "shapes": [[list(x.shape) for x in p.batch] for p in probes],
        "unreached": missing,
    }


def _run(
    format: str,
    folder: pathlib.Path,
    names: list[str],
    probes: list[Probe],
    scratch: pathlib.Path | None,
) -> list[list[np.ndarray]]:
    """Return the artifact's outputs for each probe, from a new process."""
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


def _largest_difference(
    expected: Sequence[np.ndarray], received: Sequence[np.ndarray]
) -> float:
    """Return the largest difference, in units of the largest output or of 1."""
    largest = 0.0
    for mine, other in zip(expected, received, strict=True):
        if mine.shape != other.shape:
            return float("inf")
        # The maximum of a number and NaN is NaN, which exceeds any tolerance.
        largest = float(np.maximum(largest, difference(mine, other)[1]))
    return largest


def difference(mine: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute and relative difference of two arrays.

    Args:
        mine: Array of the expected values.
        other: Array of the same shape.

    Returns:
        The largest difference, and the same in units of the largest absolute
        value of `mine`, or of 1 if that is larger.
    """
    mine, other = mine.astype("float64"), other.astype("float64")
    absolute = np.abs(mine - other).max(initial=0.0)
    return absolute, absolute / max(1.0, np.abs(mine).max(initial=0.0))


def _tolerance(model: keras.Model, manifest: dict[str, Any]) -> float:
    if is_exact(model):
        return FORMATS[manifest["format"]].tolerance
    return LOW_PRECISION_TOLERANCE
