"""The formats: who writes each, what it needs, how exact it is."""

import importlib.util
from typing import NamedTuple

from keras_moe import _keras, checks


class Format(NamedTuple):
    """One kind of artifact.

    writer: the Keras backend that writes it.
    file: the artifact's name inside its folder; `""` is the folder itself.
    parts: the files that every artifact of the format consists of.
    tolerance: the largest difference from the Keras model, in units of the
        largest output, or of one where all outputs are smaller.
    packages: what must be importable to write and to run it.
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

# Half floats and quantised products round by as much at every layer.
LOW_PRECISION_TOLERANCE = 2e-2


def format_of(name: str) -> Format:
    """Returns the format of this name, all of whose packages are here.

    Raises:
        ValueError: where there is no such format.
        ImportError: where a package is missing; it says how to install it.
    """
    name = checks.check_choice("format", name, tuple(FORMATS))
    require_packages(name, FORMATS[name].packages)
    return FORMATS[name]


def is_exact(model) -> bool:
    """Whether all of a model computes in float32 with float32 weights; words
    and indices are exact, half floats and quantised layers are not."""
    return not any(
        layer.compute_dtype in ("float16", "bfloat16")
        or getattr(layer.dtype_policy, "quantization_mode", None)
        for layer in _keras.every_layer_of(model)
    )


def require_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raises an ImportError that names the command to run."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        extra = "torch" if missing == ["torch"] else "export"
        raise ImportError(
            f"The format {name!r} needs {', '.join(missing)}. Run "
            f'pip install "keras-moe[{extra}]".'
        )
