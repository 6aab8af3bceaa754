"""`keras-moe inspect`: what a model or an artifact contains."""

import importlib.util
import json
import pathlib
import zipfile

import keras

from keras_moe.cli.files import is_model, load_model, size_of
from keras_moe.export import FORMATS, describe
from keras_moe.export.manifest import read_checked


def inspect(path: pathlib.Path) -> dict:
    """Says what a path contains.

    Returns:
        For both kinds `path`, `kind` ("model" or "artifact"), `bytes`,
        `inputs`, `outputs`, what `describe` says, `expert_bytes` of all
        blocks together, `formats` (the packages that each lacks here: those
        that a model can be exported to, or the artifact's own), `versions`
        and `verified`. For a model `name` and `class` beside; for an artifact
        the rest of its manifest.
    """
    found = _model(path) if is_model(path) else _artifact(path)
    found["expert_bytes"] = sum(m["expert_bytes"] for m in found["mixtures"])
    return {"path": str(path), **found}


def _model(path):
    model = load_model(path)
    inputs = _specs(model, "inputs")
    return {
        "kind": "model",
        "name": model.name,
        "class": type(model).__name__,
        "bytes": size_of(path),
        "inputs": inputs,
        "outputs": _specs(model, "outputs"),
        **describe(model),
        "formats": {
            name: _missing(FORMATS[name].packages)
            for name in _formats_for(inputs)
        },
        "versions": {"keras": _saved_with(path)},
        "verified": None,
    }


def _artifact(path):
    manifest = read_checked(path)
    name = manifest["format"]
    runtime = FORMATS[name].packages[-1:]
    return {
        "kind": "artifact",
        **manifest,
        "bytes": size_of(path),
        "formats": {name: _missing(runtime)},
    }


def _specs(model, name):
    """The symbolic inputs or outputs; None where the model has none."""
    tensors = getattr(model, name, None)
    if not tensors:
        return None
    return [
        {"name": t.name, "shape": list(t.shape), "dtype": t.dtype}
        for t in keras.tree.flatten(tensors)
    ]


def _formats_for(inputs):
    """Words go into a SavedModel alone."""
    if any(spec["dtype"] == "string" for spec in inputs or ()):
        return ("tf_saved_model",)
    return tuple(FORMATS)


def _missing(packages):
    return [p for p in packages if importlib.util.find_spec(p) is None]


def _saved_with(path):
    """The version of Keras that wrote the file."""
    with zipfile.ZipFile(path) as archive:
        try:
            return json.loads(archive.read("metadata.json"))["keras_version"]
        except (KeyError, ValueError):
            return None
