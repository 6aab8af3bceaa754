"""From a model to an artifact that was seen to be right."""

import logging
import os
import pathlib
import warnings

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
    path: str | os.PathLike,
    format: str = "tf_saved_model",
    input_signature=None,
    verify: bool = True,
    quantize: str | None = None,
    data=None,
) -> dict:
    """Writes a model as an artifact that runs without Keras, and tries it.

    The artifact computes only the experts it chooses, takes any batch size
    and any length that the model's inputs leave open, and drops no token that
    the model keeps. Where another backend must write the format, the model
    goes there as a `.keras` file.

    Args:
        model: built, trained on any backend; it is not changed.
        path: the folder to write. It holds the artifact (the SavedModel
            itself, `model.tflite`, `model.onnx`, `model.xml` and
            `model.bin`, or `model.pt2`) and its manifest `moe.json`. An
            artifact that is there already is replaced in one step, once the
            new one is whole: if the export fails or is killed, the old one is
            still there. Links are followed.
        format: `"tf_saved_model"`, `"litert"`, `"onnx"`, `"openvino"` or
            `"torch"`.
        input_signature: shapes and dtypes of the inputs, as
            `keras.Model.export` takes it; None takes the model's own. Axes of
            length None may be of any length.
        verify: whether to run the artifact in its own runtime, in a fresh
            process, at two batch sizes and two lengths, on inputs that
            together reach every expert, and compare.
        quantize: None, or `"int8"` or `"int4"`: the artifact holds a
            quantised copy of the model, weights alone. (Keras's own layers
            with quantised activations have integer products that LiteRT
            does not convert.)
        data: inputs to verify on, as the model takes them; None draws them.

    Returns:
        The manifest: what the model is, who wrote it with which versions,
        its size, the SHA-256 of each file under `files`, and the largest
        difference found under `verified`.

    Raises:
        TypeError, ValueError: for an argument out of its range, or where the
            artifact differs from the model by more than the format's
            tolerance: 1e-4 for LiteRT, 1e-5 for the others, in units of the
            largest output. Nothing is left behind then. Also if `path` is the
            working directory or a parent of it, or holds anything that no
            earlier export wrote, which is never deleted.
        ImportError: where a package is missing; it names the pip command.
        OSError: where `path` cannot be written or its disk is full.
        RuntimeError: where a converter or the artifact's runtime fails.
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
    path: str | os.PathLike,
    input_signature=None,
    data=None,
) -> dict:
    """Compares an artifact that is there with a model.

    Args:
        model, input_signature, data: see `export`.
        path: the artifact's folder.

    Returns:
        What `export` writes under `verified`.

    Raises:
        ValueError: If they differ by more than the format's tolerance, or if
            `moe.json` or a file that it lists is damaged.
        FileNotFoundError: If `path` is no artifact.
        RuntimeError: If the artifact does not run, or is a PyTorch program
            that `load` refuses.
        OSError: If a file cannot be read.
    """
    manifest = manifests.read_checked(path)
    format_of(manifest["format"])
    wrapped = as_functional(model, input_signature)
    return verify_folder(wrapped, manifest, pathlib.Path(path), data)


def _check_quantize(quantize):
    if not (quantize is None or quantize in MODES):
        raise ValueError(
            f"`quantize` must be None or one of {MODES}. Received: "
            f"quantize={quantize!r}. For others of Keras's ways call "
            "model.quantize(...) first and export the result."
        )


def _check_text(model, format):
    """Strings are TensorFlow's alone."""
    text = [t.name for t in model.inputs if t.dtype == "string"]
    if text and format != "tf_saved_model":
        raise ValueError(
            "`format` must be 'tf_saved_model' for a model that takes text. "
            f"Received: format={format!r}, text inputs {text}. Export the "
            "part of the model behind its TextVectorization."
        )


def _write(model, format, writer, folder):
    """Write the artifact here, or in a process of the backend that can."""
    if keras.backend.backend() == writer:
        write(model, format, folder)
        return
    _log.info(
        "%s is written by %s: the model goes there as a .keras file",
        format,
        writer,
    )
    write_elsewhere(model, format, writer, folder)


def _quantized(model, mode, scratch):
    """A quantised copy."""
    copy = scratch / "copy.keras"
    model.save(copy)
    model = keras.models.load_model(copy, compile=False)
    copy.unlink()
    with warnings.catch_warnings():
        # Of every layer that has no weights to quantise.
        warnings.filterwarnings("ignore", ".*`quantize` method implemented")
        model.quantize(config=_CONFIGS[mode](activation_quantizer=None))
    return as_functional(model)
