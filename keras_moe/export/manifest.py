"""`moe.json`: what an artifact is, lying inside its folder.

E experts, K top_k.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re

import keras

from keras_moe.export.formats import FORMATS
from keras_moe.layers import checks
from keras_moe.layers.find import blocks_of, paths_of

NAME = "moe.json"
# Raised when a reader of the old form would misread the new one.
SCHEMA = 1
_NEEDED = ("inputs", "outputs", "versions", "quantize", "verified")


def describe(model: keras.Model) -> dict:
    """Says what a model's mixtures are and what of it one token meets.

    Args:
        model: built.

    Returns:
        `parameters`, `active_parameters` (a token's: K of each block's E
        experts and all that is not an expert), `parameter_bytes`, and
        `mixtures`, one dict for each block: `path`, `class`, `router`,
        `num_experts`, `top_k`, `capacity_factor`, `eval_capacity_factor`,
        `expert_parameters` (of all E) and `expert_bytes`.
    """
    blocks = blocks_of(model)
    mixtures = list(map(_describe_block, paths_of(blocks), blocks))
    parameters = _parameters(model)
    idle = sum(
        m["expert_parameters"]
        * (m["num_experts"] - m["top_k"])
        // m["num_experts"]
        for m in mixtures
    )
    return {
        "parameters": parameters,
        "active_parameters": parameters - idle,
        "parameter_bytes": _bytes(model),
        "mixtures": mixtures,
    }


def _describe_block(path, block):
    return {
        "path": path,
        "class": type(block).__name__,
        "router": type(block.router).__name__,
        "num_experts": block.num_experts,
        "top_k": min(block.router.top_k, block.num_experts),
        "capacity_factor": block.capacity_factor,
        "eval_capacity_factor": block.eval_capacity_factor,
        "expert_parameters": _parameters(block.experts),
        "expert_bytes": _bytes(block.experts),
    }


def _parameters(layer):
    """Counted as `model.summary()` does."""
    return sum(math.prod(w.shape) for w in layer.weights)


def _bytes(layer):
    return sum(math.prod(w.shape) * _size_of(w.dtype) for w in layer.weights)


def _size_of(dtype):
    """Bytes of one number: a dtype's name ends with its bits."""
    bits = re.search(r"\d+$", keras.backend.standardize_dtype(dtype))
    return int(bits[0]) // 8 if bits else 1


def make(model, format: str, folder: pathlib.Path, quantize) -> dict:
    """Returns the manifest of an artifact that has just been written."""
    return {
        "schema": SCHEMA,
        "format": format,
        "file": FORMATS[format].file,
        "inputs": input_specs(model),
        "outputs": [
            {"shape": list(t.shape), "dtype": t.dtype} for t in model.outputs
        ],
        "quantize": quantize,
        "exported_on": keras.backend.backend(),
        "written_by": FORMATS[format].writer,
        "versions": _versions(format),
        "bytes": sum(
            f.stat().st_size for f in folder.rglob("*") if f.is_file()
        ),
        **describe(model),
        "verified": None,
    }


def input_specs(model: keras.Model) -> list[dict]:
    """Returns `name`, `shape` and `dtype` of each input of a model, and of
    indices `below`, the number that they must be below."""
    below = vocabulary_size(model)
    return [
        {
            "name": t.name,
            "shape": list(t.shape),
            "dtype": t.dtype,
            **({"below": below} if "int" in t.dtype else {}),
        }
        for t in model.inputs
    ]


def vocabulary_size(model: keras.Model) -> int:
    """Returns how many indices every embedding of a model has; 2 without."""
    sizes = [
        layer.input_dim
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Embedding)
    ]
    return min(sizes, default=2)


def _versions(format):
    """The installed version of everything that had a hand in it."""
    versions = {"python": platform.python_version()}
    for package in ("keras-moe", "keras", *FORMATS[format].packages):
        name = package.replace("_", "-")
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def save(manifest: dict, folder: pathlib.Path) -> None:
    """Writes `moe.json`."""
    text = json.dumps(manifest, indent=2)
    (folder / NAME).write_text(text + "\n")


def read(folder: str | os.PathLike) -> dict:
    """Reads the `moe.json` of an artifact's folder.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is not one, or from a version that is not ours.
    """
    path = checks.check_path("path", folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be the folder of an artifact, with a {NAME} in it. "
            f"Received: {folder}. Write one with keras_moe.export.export."
        )
    try:
        manifest = json.loads(path.read_text())
        schema, format = manifest["schema"], manifest["format"]
        if schema == SCHEMA and format in FORMATS:
            missing = [name for name in _NEEDED if name not in manifest]
            if missing:
                raise KeyError(*missing)
            return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be what keras_moe wrote. Received: {error!r}. Export "
            "the model again."
        ) from None
    by = manifest.get("versions", {}).get("keras-moe")
    raise ValueError(
        f"{path} must be of schema {SCHEMA} and of a known format. Received: "
        f"schema {schema!r}, format {format!r}, written by keras-moe {by}. "
        "Export the model again with this version."
    )
