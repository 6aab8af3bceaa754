"""A model or an artifact as one thing that can be run."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_moe import kernels
from keras_moe.cli.files import is_model, load_functional
from keras_moe.export import FORMATS, load
from keras_moe.export.formats import LOW_PRECISION_TOLERANCE, is_exact
from keras_moe.export.manifest import input_specs

Batch = list[np.ndarray]
# Of two Keras backends, as of the formats: in units of the largest output.
MODEL_TOLERANCE = 1e-5


class Runnable(NamedTuple):
    """path: where it came from. format: of the artifact, or "keras".
    inputs, outputs: dicts of `shape` and `dtype`, of inputs `name` and, of
    indices, `below`. run: from a batch to the list of outputs. tolerance: of
    its outputs. model: the functional model, or None. shapes: of batches that
    it is known to take."""

    path: str
    format: str
    inputs: list[dict]
    outputs: list[dict]
    run: Callable[[Batch], Batch]
    tolerance: float
    model: keras.Model | None = None
    shapes: list[list[list[int]]] = []


def open_runnable(path: pathlib.Path, threads: int | None = None) -> Runnable:
    """Loads a `.keras` file or an artifact.

    Args:
        path: of either.
        threads: that an artifact's runtime may use.
    """
    return _model(path) if is_model(path) else _artifact(path, threads)


def _artifact(path, threads):
    artifact = load(path, threads)
    manifest = artifact.manifest
    verified = manifest["verified"] or {}
    usual = FORMATS[manifest["format"]].tolerance
    if manifest["quantize"]:
        usual = LOW_PRECISION_TOLERANCE
    return Runnable(
        str(path),
        manifest["format"],
        manifest["inputs"],
        manifest["outputs"],
        artifact,
        verified.get("tolerance", usual),
        shapes=verified.get("shapes", []),
    )


def _model(path):
    model = load_functional(path)
    return Runnable(
        str(path),
        "keras",
        input_specs(model),
        [{"shape": list(t.shape), "dtype": t.dtype} for t in model.outputs],
        _program(model),
        MODEL_TOLERANCE if is_exact(model) else LOW_PRECISION_TOLERANCE,
        model,
    )


def _program(model):
    """The model compiled, from arrays to arrays."""

    def function(*inputs):
        nest = inputs[0] if len(inputs) == 1 else list(inputs)
        return keras.tree.flatten(model(nest, training=False))

    program = kernels.compiled(function, model.variables)

    def run(batch):
        outputs = program(*map(ops.convert_to_tensor, batch))
        return [ops.convert_to_numpy(y) for y in outputs]

    return run
