"""Write, read, and check `moe.json`, the manifest of an artifact."""

import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
from reprlib import repr as repr_of
from typing import Any

import keras

from keras_moe import _keras, checks
from keras_moe.export import checksums, schema
from keras_moe.export.describing import describe
from keras_moe.export.formats import FORMATS
from keras_moe.files.content_checksum import CHECKSUM, checksum_of_content

NAME = "moe.json"
# Increase it if code that reads the old schema would misread the new one.
SCHEMA = 2
WITHOUT_CHECKSUMS = 1
LARGEST = 2**24  # bytes of `moe.json`


def make(
    model: keras.Model,
    format: str,
    folder: pathlib.Path,
    quantize: str | None,
) -> dict[str, Any]:
    """Return the manifest of an artifact that has just been written.

    Args:
        model: Functional model that was exported.
        format: Name of the artifact's format.
        folder: The artifact's folder.
        quantize: Quantization mode of the weights, or `None`.
    """
    files = checksums.of_folder(folder)
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
        "bytes": sum(file["bytes"] for file in files.values()),
        **describe(model),
        "verified": None,
        "files": files,
    }


def input_specs(model: keras.Model) -> list[dict[str, Any]]:
    """Return the `name`, `shape`, and `dtype` of each input of a model.

    The dict of an integer input also has `below`, the exclusive upper bound
    of its indices.
    """
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
    """Return the smallest `input_dim` of a model's embeddings, or 2."""
    sizes = [
        layer.input_dim
        for layer in _keras.every_layer_of(model)
        if isinstance(layer, keras.layers.Embedding)
    ]
    return min(sizes, default=2)


def _versions(format: str) -> dict[str, str | None]:
    """Return the installed versions of all packages that write a format."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("keras-moe", "keras", *FORMATS[format].packages):
        name = package.replace("_", "-")
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def save(manifest: dict[str, Any], folder: pathlib.Path) -> None:
    """Write `moe.json`, and add the checksum of its content to `manifest`.

    Raises:
        ValueError: If `read` would not accept the manifest.
    """
    manifest[CHECKSUM] = checksum_of_content(manifest)
    _check(manifest)
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `moe.json` of an artifact's folder and check its content.

    The files that `moe.json` lists are not read; `read_checked` checks them,
    too.

    Raises:
        FileNotFoundError: If there is no `moe.json`.
        ValueError: If `moe.json` is damaged, or if its schema is unknown to
            this version of keras_moe.
    """
    path = checks.check_path("path", folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be the folder of an artifact, with a {NAME} in it. "
            f"Received: {folder}. Write one with keras_moe.export.export."
        )
    try:
        manifest: dict[str, Any] = _decoded(path)
        _check(manifest)
    except ValueError as error:
        raise ValueError(
            f"{path} must be what keras_moe wrote. {error}. Export the model "
            "again."
        ) from None
    return manifest


def read_checked(
    folder: str | os.PathLike[str], stacklevel: int = 3
) -> dict[str, Any]:
    """Read the manifest of an artifact and check all files that it lists.

    A manifest that was written before keras_moe stored checksums gives a
    warning.

    Args:
        folder: The artifact's folder.
        stacklevel: Stack level of the warning. 3 (the default) is the caller
            of the caller.

    Raises:
        FileNotFoundError: If there is no manifest.
        ValueError: If the manifest or a file is damaged.
        OSError: If a file cannot be read.
    """
    manifest = read(folder)
    if manifest["schema"] == WITHOUT_CHECKSUMS:
        warnings.warn(
            f"The artifact in {folder} was written before keras_moe stored "
            "checksums, so damaged files are not detected. Export the model "
            "again.",
            stacklevel=stacklevel,
        )
        return manifest
    damage = checksums.damage_of(manifest, pathlib.Path(folder))
    if damage:
        raise ValueError(
            f"The files in {folder} must be those that keras_moe wrote. "
            f"Received: {damage}. The artifact is damaged: export the model "
            "again, or copy the folder again."
        )
    return manifest


def listed_files(manifest: dict[str, Any]) -> set[str]:
    """Return the relative paths of an artifact's files, without `moe.json`.

    A manifest that `read` accepts contains no path outside of its folder. Old
    manifests have no list of files; for them, the files that their format
    always contains are returned.
    """
    if manifest["schema"] == WITHOUT_CHECKSUMS:
        return set(FORMATS[manifest["format"]].parts)
    return set(manifest["files"])


def _decoded(path: pathlib.Path) -> Any:
    """Return the JSON of a file of bounded size and depth."""
    with open(path, "rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"Received: a file of more than {LARGEST} bytes")
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Received: {error!r}") from None


def _check(manifest: Any) -> None:
    """Raise a ValueError if a manifest is damaged or has an unknown schema."""
    if not isinstance(manifest, dict):
        schema.fail(NAME, "an object", manifest)
    _check_schema(manifest)
    format = FORMATS[manifest["format"]]
    old = manifest["schema"] == WITHOUT_CHECKSUMS
    schema.check(manifest, old)
    if manifest["file"] != format.file:
        schema.fail("file", repr(format.file), manifest["file"])
    if old:
        return
    if manifest[CHECKSUM] != checksum_of_content(manifest):
        raise ValueError("Received: content that differs from its `checksum`")
    if not set(format.parts) <= set(manifest["files"]):
        listed = sorted(manifest["files"])
        schema.fail("files", f"a list with {format.parts}", listed)
    if manifest["bytes"] != sum(f["bytes"] for f in manifest["files"].values()):
        schema.fail("bytes", "the sum of `files`", manifest["bytes"])


def _check_schema(manifest: dict[str, Any]) -> None:
    number, format = manifest.get("schema"), manifest.get("format")
    known = type(number) is int and number in (WITHOUT_CHECKSUMS, SCHEMA)
    if known and isinstance(format, str) and format in FORMATS:
        return
    versions = manifest.get("versions")
    by = versions.get("keras-moe") if isinstance(versions, dict) else None
    raise ValueError(
        f"It must have schema {SCHEMA} and a known format. Received: "
        f"schema {repr_of(number)}, format {repr_of(format)}, written by "
        f"keras-moe {repr_of(by)}"
    )
