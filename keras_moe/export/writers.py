"""Write an artifact with the running backend, one function per format.

Most of the work is done by Keras's own exporters. This module adds LiteRT
without TensorFlow's operators, a recent ONNX operator set with one more
operation, OpenVINO without the outputs of inner functions, and PyTorch programs
of any batch size.
"""

import io
import pathlib
import warnings
from collections.abc import Callable
from itertools import count
from typing import Any

import keras
from keras import ops

from keras_moe.types import Tensor

ONNX_OPSET = 18


def write(model: keras.Model, format: str, folder: pathlib.Path) -> None:
    """Write the artifact of a model into an empty folder.

    Args:
        model: From `as_functional`.
        format: One of `FORMATS` that the running backend writes.
        folder: Empty folder to write into. Temporary files are written beside
            it.
    """
    with warnings.catch_warnings():
        # Converters warn of NumPy, of each other, and of their own age.
        warnings.simplefilter("ignore")
        _WRITERS[format](model, pathlib.Path(folder))


def _export(
    model: keras.Model, path: pathlib.Path, format: str, **options: Any
) -> None:
    """Export a model with Keras's own exporter, under its inputs' names."""
    nest = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    model.export(
        str(path),
        format=format,
        input_signature=[nest],
        verbose=False,
        **options,
    )


def _saved_model(model: keras.Model, folder: pathlib.Path) -> None:
    _export(model, folder, "tf_saved_model")


def _litert(model: keras.Model, folder: pathlib.Path) -> None:
    import tensorflow as tf

    operators = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    _export(model, folder / "model.tflite", "litert", target_spec=operators)


def _onnx(model: keras.Model, folder: pathlib.Path) -> None:
    import onnx

    _teach_erfc()
    path = folder / "model.onnx"
    _export(model, path, "onnx", opset_version=ONNX_OPSET)
    onnx.checker.check_model(str(path), full_check=True)


def _openvino(model: keras.Model, folder: pathlib.Path) -> None:
    import openvino

    # The caller removes this folder with everything else beside `folder`.
    scratch = folder.parent / "saved_model"
    _saved_model(model, scratch)
    converted = openvino.convert_model(scratch)
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _torch(model: keras.Model, folder: pathlib.Path) -> None:
    import torch

    any_length = torch.export.Dim.DYNAMIC
    examples, shapes = [], []
    for tensor in model.inputs:
        # torch.export assumes that equal lengths are one dimension, and it
        # treats lengths of 0 and 1 as constants.
        lengths = count(2)
        shape = [next(lengths) if n is None else n for n in tensor.shape]
        examples.append(ops.zeros(shape, dtype=tensor.dtype))
        shapes.append(
            {i: any_length for i, n in enumerate(tensor.shape) if n is None}
        )
    with torch.no_grad():
        program = torch.export.export(
            _Positional(model),
            tuple(examples),
            dynamic_shapes=tuple([tuple(shapes)]),
            strict=False,
        )
    # To memory first: torch kills the process if it cannot write its file.
    archive = io.BytesIO()
    torch.export.save(program, archive)
    (folder / "model.pt2").write_bytes(archive.getvalue())


def _Positional(model: keras.Model) -> Any:
    """Return a torch module that calls the model with one tensor per argument.

    The model is not a submodule of it: Keras reads the weights from variables,
    so they become constants of the program and would be stored twice.
    """
    import torch

    class Positional(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            outputs = model(
                inputs[0] if len(inputs) == 1 else list(inputs), training=False
            )
            return keras.tree.flatten(outputs)

    return Positional()


def _teach_erfc() -> None:
    """Make tf2onnx write `erfc(x)`, a part of exact GELU, as `1 - erf(x)`."""
    import numpy as np
    from tf2onnx.handler import tf_op

    class Erfc:
        @classmethod
        def version_9(cls, graph: Any, node: Any, **kwargs: Any) -> None:
            dtype = graph.get_dtype(node.input[0])
            output, shapes = node.output[0], node.output_shapes
            graph.remove_node(node.name)
            erf = graph.make_node("Erf", node.input, shapes=shapes)
            one = graph.make_const(f"{node.name}_one", np.float32(1))
            graph.make_node(
                "Sub",
                [one.output[0], erf.output[0]],
                name=node.name,
                outputs=[output],
                shapes=shapes,
                dtypes=[dtype],
            )

    tf_op("Erfc")(Erfc)


_WRITERS: dict[str, Callable[[keras.Model, pathlib.Path], None]] = {
    "tf_saved_model": _saved_model,
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}
