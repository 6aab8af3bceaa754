"""`moe.json`: what an artifact is, and the checksums of its files."""

import importlib.metadata
import json
import os
import pathlib
import platform
import warnings
from reprlib import repr as repr_of

import keras

from keras_moe import _keras, checks
from keras_moe.export import checksums, schema
from keras_moe.export.describing import describe
from keras_moe.export.formats import FORMATS

NAME = "moe.json"
# Increased when a reader of the old form would misread the new one.
SCHEMA = 2
WITHOUT_CHECKSUMS = 1
LARGEST = 2**24  # bytes of `moe.json`


def make(model, format: str, folder: pathlib.Path, quantize) -> dict:
    """Return the manifest of an artifact that has just been written."""
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
        for layer in _keras.every_layer_of(model)
        if isinstance(layer, keras.layers.Embedding)
    ]
    return min(sizes, default=2)


def _versions(format):
    """The installed version of everything that had a hand in it."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("keras-moe", "keras", *FORMATS[format].packages):
        name = package.replace("_", "-")
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def save(manifest: dict, folder: pathlib.Path) -> None:
    """Write `moe.json`, and add the checksum of its content to `manifest`.

    Raises:
        ValueError: If the manifest is not what `read` accepts.
    """
    manifest[checksums.CHECKSUM] = checksums.of_content(manifest)
    _check(manifest)
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: str | os.PathLike) -> dict:
    """Read the `moe.json` of an artifact's folder and check its content.

    The files that it lists are not read; `read_checked` checks them, too.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or of a schema that this version of
            keras_moe does not know.
    """
    path = checks.check_path("path", folder) / NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be the folder of an artifact, with a {NAME} in it. "
            f"Received: {folder}. Write one with keras_moe.export.export."
        )
    try:
        manifest = _decoded(path)
        _check(manifest)
    except ValueError as error:
        raise ValueError(
            f"{path} must be what keras_moe wrote. {error}. Export the model "
            "again."
        ) from None
    return manifest


def read_checked(folder: str | os.PathLike, stacklevel: int = 3) -> dict:
    """Read the manifest of an artifact and check all files that it lists.

    A manifest from before keras_moe wrote checksums gives one warning.

    Args:
        folder: The artifact's folder.
        stacklevel: Of the warning. 3, the default, is the caller's caller.

    Raises:
        FileNotFoundError: If there is no manifest.
        ValueError: If the manifest or a file is damaged.
        OSError: If a file cannot be read.
    """
    manifest = read(folder)
    if manifest["schema"] == WITHOUT_CHECKSUMS:
        warnings.warn(
            f"The artifact in {folder} was written before keras_moe stored "
            "checksums, so damaged files are not noticed. Export the model "
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


def listed_files(manifest: dict) -> set[str]:
    """Return the relative paths of the files that an artifact consists of.

    A manifest that `read` accepts names no path outside of its folder.
    `moe.json` is not among the paths. Old manifests have no list: the files
    that their format always consists of are returned.
    """
    if manifest["schema"] == WITHOUT_CHECKSUMS:
        return set(FORMATS[manifest["format"]].parts)
    return set(manifest["files"])


def _decoded(path):
    """Return the JSON of a file of bounded size and depth."""
    with open(path, "rb") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"Received: a file of more than {LARGEST} bytes")
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Received: {error!r}") from None


def _check(manifest):
    """Raise a ValueError if a manifest is of no known schema, or damaged."""
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
    if manifest[checksums.CHECKSUM] != checksums.of_content(manifest):
        raise ValueError("Received: content that differs from its `checksum`")
    if not set(format.parts) <= set(manifest["files"]):
        listed = sorted(manifest["files"])
        schema.fail("files", f"a list with {format.parts}", listed)
    if manifest["bytes"] != sum(f["bytes"] for f in manifest["files"].values()):
        schema.fail("bytes", "the sum of `files`", manifest["bytes"])


def _check_schema(manifest):
    number, format = manifest.get("schema"), manifest.get("format")
    known = type(number) is int and number in (WITHOUT_CHECKSUMS, SCHEMA)
    if known and isinstance(format, str) and format in FORMATS:
        return
    versions = manifest.get("versions")
    by = versions.get("keras-moe") if isinstance(versions, dict) else None
    raise ValueError(
        f"It must be of schema {SCHEMA} and of a known format. Received: "
        f"schema {repr_of(number)}, format {repr_of(format)}, written by "
        f"keras-moe {repr_of(by)}"
    )
