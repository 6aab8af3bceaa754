"""List the formats: their writers, files, packages, and tolerances."""

import importlib.util
from typing import NamedTuple

import keras

from keras_moe import _keras, checks


class Format(NamedTuple):
    """Describe one format of artifacts.

    Attributes:
        writer: Name of the Keras backend that writes the format.
        file: Path of the artifact inside its folder. `""` is the folder
            itself.
        parts: Relative paths of the files that every artifact of the format
            contains.
        tolerance: Largest allowed difference from the outputs of the Keras
            model, in units of the largest output, or of 1 if all outputs are
            smaller.
        packages: Packages that must be importable to write and to run the
            artifact. The last one is the runtime.

    Example:

    ```python
    for name, format in keras_moe.export.FORMATS.items():
        print(name, "is written by", format.writer)
    ```
    """

    writer: str
    file: str
    parts: tuple[str, ...]
    tolerance: float
    packages: tuple[str, ...]


FORMATS = {
    "tf_saved_model": Format(
        "tensorflow",
        "",
        (
            "saved_model.pb",
            "fingerprint.pb",
            "variables/variables.index",
            "variables/variables.data-00000-of-00001",
        ),
        1e-5,
        ("tensorflow",),
    ),
    "litert": Format(
        "tensorflow",
        "model.tflite",
        ("model.tflite",),
        1e-4,
        ("tensorflow", "ai_edge_litert"),
    ),
    "onnx": Format(
        "tensorflow",
        "model.onnx",
        ("model.onnx",),
        1e-5,
        ("tensorflow", "tf2onnx", "onnx", "onnxruntime"),
    ),
    "openvino": Format(
        "tensorflow",
        "model.xml",
        ("model.xml", "model.bin"),
        1e-5,
        ("tensorflow", "openvino"),
    ),
    "torch": Format("torch", "model.pt2", ("model.pt2",), 1e-5, ("torch",)),
}

# Half-precision and quantized layers round by up to this much.
LOW_PRECISION_TOLERANCE = 2e-2


def format_of(name: str) -> Format:
    """Return the format of a name, if all of its packages are installed.

    Raises:
        ValueError: If there is no format of this name.
        ImportError: If a package is missing.
    """
    name = checks.check_choice("format", name, tuple(FORMATS))
    require_packages(name, FORMATS[name].packages)
    return FORMATS[name]


def is_exact(model: keras.Model) -> bool:
    """Return whether no layer is quantized or computes in half precision."""
    return not any(
        layer.compute_dtype in ("float16", "bfloat16")
        or getattr(layer.dtype_policy, "quantization_mode", None)
        for layer in _keras.every_layer_of(model)
    )


def require_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raise an ImportError if a package of a format is missing.

    Args:
        name: Name of the format.
        packages: Packages that must be importable.

    Raises:
        ImportError: If a package is missing. The message names the
            `pip install` command.
    """
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        extra = "torch" if missing == ["torch"] else "export"
        raise ImportError(
            f"The format {name!r} needs {', '.join(missing)}. Run "
            f'pip install "keras-moe[{extra}]".'
        )
