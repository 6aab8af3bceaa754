"""Export models as verified artifacts."""

import logging
import os
import pathlib
import warnings
from typing import Any

import keras

from keras_moe import checks
from keras_moe.export import manifest as manifests
from keras_moe.export.elsewhere import write_elsewhere
from keras_moe.export.formats import format_of
from keras_moe.export.placing import (
    check_place,
    check_replaceable,
    is_replaceable,
)
from keras_moe.export.signature import as_functional
from keras_moe.export.verifying import verify_folder
from keras_moe.export.writers import write
from keras_moe.files import NEW, scratch_beside, swap_in

_log = logging.getLogger("keras_moe.export")
_CONFIGS = {
    "int8": keras.quantizers.Int8QuantizationConfig,
    "int4": keras.quantizers.Int4QuantizationConfig,
}
MODES = tuple(_CONFIGS)


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "tf_saved_model",
    input_signature: Any = None,
    verify: bool = True,
    quantize: str | None = None,
    data: Any = None,
) -> dict[str, Any]:
    """Export a model as an artifact that runs without Keras, and verify it.

    The artifact computes only the experts that its routers choose. It accepts
    any batch size, and any length of the axes that the model's inputs leave
    open, and it drops no token that the model keeps. If the format must be
    written by another backend, the model is passed to a process of that
    backend as a `.keras` file.

    Args:
        model: A built `keras.Model`, trained on any backend. It is not
            changed.
        path: Folder to write: the artifact (the SavedModel itself,
            `model.tflite`, `model.onnx`, `model.xml` and `model.bin`, or
            `model.pt2`) and its manifest `moe.json`. An earlier artifact in
            the folder is replaced in one step after the new one is complete,
            so a failed or killed export leaves it unchanged. Links are
            followed.
        format: One of `"tf_saved_model"` (the default), `"litert"`, `"onnx"`,
            `"openvino"`, and `"torch"`.
        input_signature: Shapes and dtypes of the inputs, as in
            `keras.Model.export`. `None` (the default) uses the model's own
            inputs. Axes of length `None` may have any length.
        verify: Whether to run the artifact in its own runtime, in a new
            process, and compare its outputs with the model's: at two batch
            sizes and two lengths, on inputs that together reach every expert.
            Default: `True`.
        quantize: `"int8"` or `"int4"` exports a copy of the model with
            quantized weights. Activations are not quantized, because LiteRT
            does not convert the integer products of Keras's own layers with
            quantized activations. `None` (the default) exports the model
            unchanged.
        data: Inputs to verify on, in the form in which the model accepts
            them. `None` (the default) draws random inputs.

    Returns:
        The manifest as a dict: the description of the model, the versions of
        the packages that wrote the artifact, its size, the SHA-256 of each
        file under `files`, and the largest difference under `verified`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `format`, `quantize`, or `verify` is not one of the
            values above; if `input_signature` does not fit the inputs; if the
            model takes text and `format` is not `"tf_saved_model"`; if `path`
            is a file, the working directory, a parent of it, or a mount point,
            or contains anything that an earlier export did not write (which is
            never deleted); or if the outputs of the artifact differ from the
            model's by more than the format's tolerance. The tolerance is 1e-4
            for LiteRT and 1e-5 for the other formats, in units of the largest
            output, and 2e-2 if the model computes in half precision or is
            quantized. `path` is not changed then.
        ImportError: If a package is missing. The message names the
            `pip install` command.
        OSError: If `path` cannot be written or its disk is full.
        RuntimeError: If a converter or the artifact's runtime fails.

    Example:

    ```python
    manifest = keras_moe.export.export(model, "saved_models/digits")
    print(manifest["verified"]["largest_difference"])
    ```
    """
    checks.check_bool("verify", verify)
    writer = format_of(format).writer
    _check_quantize(quantize)
    target = check_place(path)
    wrapped = as_functional(model, input_signature)
    _check_text(wrapped, format)
    with scratch_beside(target, is_replaceable) as scratch:
        if quantize is not None:
            wrapped = _quantized(wrapped, quantize, scratch)
        folder = scratch / NEW
        folder.mkdir()
        _write(wrapped, format, writer, folder)
        manifest = manifests.make(wrapped, format, folder, quantize)
        if verify:
            manifest["verified"] = verify_folder(
                wrapped, manifest, folder, data, scratch
            )
        manifests.save(manifest, folder)
        swap_in(scratch, target, check_replaceable)
    _log.info("wrote %s", target)
    return manifest


def verify(
    model: keras.Model,
    path: str | os.PathLike[str],
    input_signature: Any = None,
    data: Any = None,
) -> dict[str, Any]:
    """Compare the outputs of an existing artifact with those of a model.

    Args:
        model, input_signature, data: See `export`.
        path: The artifact's folder.

    Returns:
        The dict that `export` writes under `verified` in the manifest.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If they differ by more than the format's tolerance, or if
            `moe.json` or a file that it lists is damaged.
        FileNotFoundError: If `path` does not contain a `moe.json`.
        ImportError: If a package of the format is missing.
        RuntimeError: If the artifact does not run, or is a PyTorch program
            that `load` refuses.
        OSError: If a file cannot be read.

    Example:

    ```python
    found = keras_moe.export.verify(model, "saved_models/digits")
    print(found["largest_difference"])
    ```
    """
    manifest = manifests.read_checked(path)
    format_of(manifest["format"])
    wrapped = as_functional(model, input_signature)
    return verify_folder(wrapped, manifest, pathlib.Path(path), data)


def _check_quantize(quantize: str | None) -> None:
    if not (quantize is None or quantize in MODES):
        raise ValueError(
            f"`quantize` must be None or one of {MODES}. Received: "
            f"quantize={quantize!r}. For another quantization mode of Keras, "
            "call model.quantize(...) first and export the result."
        )


def _check_text(model: keras.Model, format: str) -> None:
    """Raise if a model takes text and the format does not support it."""
    text = [t.name for t in model.inputs if t.dtype == "string"]
    if text and format != "tf_saved_model":
        raise ValueError(
            "`format` must be 'tf_saved_model' for a model that takes text. "
            f"Received: format={format!r}, text inputs {text}. Export the "
            "part of the model after its TextVectorization."
        )


def _write(
    model: keras.Model, format: str, writer: str, folder: pathlib.Path
) -> None:
    """Write the artifact in this process, or in one of another backend."""
    if keras.backend.backend() == writer:
        write(model, format, folder)
        return
    _log.info(
        "%s is written by %s, which receives the model as a .keras file",
        format,
        writer,
    )
    write_elsewhere(model, format, writer, folder)


def _quantized(
    model: keras.Model, mode: str, scratch: pathlib.Path
) -> keras.Model:
    """Return a functional copy of a model with quantized weights."""
    copy = scratch / "copy.keras"
    model.save(copy)
    model = keras.models.load_model(copy, compile=False)
    copy.unlink()
    with warnings.catch_warnings():
        # Keras warns of every layer without weights to quantize.
        warnings.filterwarnings("ignore", ".*`quantize` method implemented")
        model.quantize(config=_CONFIGS[mode](activation_quantizer=None))
    return as_functional(model)
