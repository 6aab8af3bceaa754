"""`keras-moe inspect`: describe what a model or an artifact contains."""

import importlib.util
import json
import pathlib
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from keras_moe.export import FORMATS, describe
from keras_moe.export.manifest import read_checked
from keras_moe_cli.path_arguments import is_model, load_model, size_of
from keras_moe_cli.result_tables import (
    Part,
    Result,
    columns,
    facts,
    shape_text,
    size,
    verified_text,
)


def inspect(path: pathlib.Path) -> Result:
    """Describe a model or an artifact.

    Args:
        path: A `.keras` file or an artifact's folder.

    Returns:
        Dict of `path`, `kind` (`"model"` or `"artifact"`), `bytes`, `inputs`,
        `outputs`, the entries of `keras_moe.export.describe`, `expert_bytes`
        of all mixtures together, `formats`, `versions`, and `verified`.
        `formats` lists the packages that are not installed, for each format
        that a model can be exported to, or for the artifact's own. A model also
        has `name` and `class`; an artifact has the other entries of its
        manifest.
    """
    result = _model(path) if is_model(path) else _artifact(path)
    result["expert_bytes"] = sum(m["expert_bytes"] for m in result["mixtures"])
    return {"path": str(path), **result}


def tables(result: Result) -> Iterator[Part]:
    """Yield a table of the whole, and then a table with a row per mixture."""
    total, active = result["parameters"], result["active_parameters"]
    share = f" ({active / total:.0%})" if total else ""
    yield facts(
        ("path", result["path"]),
        ("kind", _kind(result)),
        ("inputs", _tensors(result["inputs"])),
        ("outputs", _tensors(result["outputs"])),
        ("parameters", f"{total:,}"),
        ("active per token", f"{active:,}{share}"),
        (
            "memory",
            f"{size(result['parameter_bytes'])}, of experts "
            f"{size(result['expert_bytes'])}",
        ),
        ("size on disk", size(result["bytes"])),
        ("runs in" if "format" in result else "exports to", _formats(result)),
        ("versions", _versions(result["versions"])),
        *_verified(result),
    )
    yield _mixtures(result["mixtures"])


def _model(path: pathlib.Path) -> Result:
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


def _artifact(path: pathlib.Path) -> Result:
    manifest = read_checked(path)
    name = manifest["format"]
    runtime = FORMATS[name].packages[-1:]
    return {
        "kind": "artifact",
        **manifest,
        "bytes": size_of(path),
        "formats": {name: _missing(runtime)},
    }


def _specs(model: keras.Model, name: str) -> list[dict[str, Any]] | None:
    """Return the symbolic inputs or outputs; `None` if there are none."""
    tensors = getattr(model, name, None)
    if not tensors:
        return None
    return [
        {"name": t.name, "shape": list(t.shape), "dtype": t.dtype}
        for t in keras.tree.flatten(tensors)
    ]


def _formats_for(inputs: list[dict[str, Any]] | None) -> tuple[str, ...]:
    """Return the formats of a model; only a SavedModel accepts text."""
    if any(spec["dtype"] == "string" for spec in inputs or ()):
        return ("tf_saved_model",)
    return tuple(FORMATS)


def _missing(packages: Iterable[str]) -> list[str]:
    return [p for p in packages if importlib.util.find_spec(p) is None]


def _saved_with(path: pathlib.Path) -> str | None:
    """Return the version of Keras that wrote a file, if the file names it."""
    with zipfile.ZipFile(path) as archive:
        try:
            metadata = json.loads(archive.read("metadata.json"))
            version: str = metadata["keras_version"]
            return version
        except (KeyError, ValueError):
            return None


def _kind(result: Result) -> str:
    if result["kind"] == "model":
        return f"Keras model {result['name']!r} ({result['class']})"
    parts = [f"{result['format']} artifact"]
    if result["quantize"]:
        parts.append(result["quantize"])
    # The manifest does not have the backend that a model was trained on.
    parts.append(f"exported on {result['exported_on']}")
    parts.append(f"written by {result['written_by']}")
    return ", ".join(parts)


def _formats(result: Result) -> str:
    return ", ".join(
        f"{name} (needs {', '.join(missing)})" if missing else name
        for name, missing in result["formats"].items()
    )


def _versions(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{k} {v}" for k, v in versions.items() if v) or "unknown"


def _verified(result: Result) -> Iterator[tuple[str, str]]:
    """Yield how an artifact was verified, and nothing for a model."""
    if result["kind"] == "artifact":
        yield "verified", verified_text(result["verified"])


def _tensors(specs: list[dict[str, Any]] | None) -> str:
    if specs is None:
        return "unknown, because the model has no symbolic inputs"
    words = (
        (spec.get("name", ""), shape_text(spec["shape"]), spec["dtype"])
        for spec in specs
    )
    return ", ".join(" ".join(filter(None, word)) for word in words)


def _mixtures(mixtures: list[dict[str, Any]]) -> Part:
    if not mixtures:
        return "There is no mixture of experts inside."
    table = columns(
        "mixture",
        "router",
        "experts",
        "top_k",
        "capacity",
        "training",
        "parameters",
        "memory",
    )
    for m in mixtures:
        table.add_row(
            m["path"],
            m["router"],
            str(m["num_experts"]),
            str(m["top_k"]),
            _capacity(m["eval_capacity_factor"]),
            _capacity(m["capacity_factor"]),
            f"{m['expert_parameters']:,}",
            size(m["expert_bytes"]),
        )
    return table


def _capacity(factor: float | None) -> str:
    return "dropless" if factor is None else f"{factor:g}"
