"""Open a model or an artifact as a function."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_moe import kernels
from keras_moe.export import FORMATS, load
from keras_moe.export.formats import LOW_PRECISION_TOLERANCE, is_exact
from keras_moe.export.manifest import input_specs
from keras_moe_cli.path_arguments import is_model, load_functional

Batch = list[np.ndarray]
Spec = dict[str, Any]
# The tolerance between two Keras backends, in units of the largest output.
MODEL_TOLERANCE = 1e-5


class Runnable(NamedTuple):
    """Hold a model or an artifact that can be run.

    Attributes:
        path: Path of the model or artifact.
        format: The artifact's format, or `"keras"`.
        inputs: `name`, `shape`, and `dtype` of each input, and `below`, the
            upper bound of indices, if it is known.
        outputs: `shape` and `dtype` of each output.
        run: Function from a batch to the list of outputs.
        tolerance: Largest allowed difference between the outputs and those of
            another form, in units of the largest output.
        model: The functional model. `None` for an artifact.
        shapes: The inputs' shapes in each batch that an artifact was verified
            on.
    """

    path: str
    format: str
    inputs: list[Spec]
    outputs: list[Spec]
    run: Callable[[Batch], Batch]
    tolerance: float
    model: keras.Model | None = None
    shapes: list[list[list[int]]] = []


def open_runnable(path: pathlib.Path, threads: int | None = None) -> Runnable:
    """Load a `.keras` file or an artifact.

    Args:
        path: The file, or the artifact's folder.
        threads: Number of threads of an artifact's runtime. `None` (the
            default) leaves the choice to the runtime.
    """
    return _model(path) if is_model(path) else _artifact(path, threads)


def _artifact(path: pathlib.Path, threads: int | None) -> Runnable:
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


def _model(path: pathlib.Path) -> Runnable:
    model = load_functional(path)
    return Runnable(
        str(path),
        "keras",
        input_specs(model),
        [{"shape": list(t.shape), "dtype": t.dtype} for t in model.outputs],
        _compiled(model),
        MODEL_TOLERANCE if is_exact(model) else LOW_PRECISION_TOLERANCE,
        model,
    )


def _compiled(model: keras.Model) -> Callable[[Batch], Batch]:
    """Return the compiled model as a function of arrays."""

    def function(*inputs: Any) -> Any:
        nest = inputs[0] if len(inputs) == 1 else list(inputs)
        return keras.tree.flatten(model(nest, training=False))

    program = kernels.compiled(function, model.variables)

    def run(batch: Batch) -> Batch:
        outputs = program(*map(ops.convert_to_tensor, batch))
        return [ops.convert_to_numpy(y) for y in outputs]

    return run
