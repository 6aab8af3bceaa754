"""Writes an artifact with the backend that runs; one function a format.

Keras's own exporters do the work. What they do not, and what is added here:
LiteRT without TensorFlow's operators, an ONNX operator set of this decade with
one operation more, OpenVINO without the outputs of inner functions, and
PyTorch programs of any batch size.
"""

import io
import pathlib
import warnings
from itertools import count

import keras
from keras import ops

ONNX_OPSET = 18


def write(model: keras.Model, format: str, folder: pathlib.Path) -> None:
    """Writes the artifact of `model` into an empty folder.

    Args:
        model: from `as_functional`.
        format: one of `FORMATS` that the running backend writes.
        folder: Empty folder to write into. Temporary files lie beside it.
    """
    with warnings.catch_warnings():
        # Converters warn of NumPy, of each other and of their own age.
        warnings.simplefilter("ignore")
        _WRITERS[format](model, pathlib.Path(folder))


def _export(model, path, format, **options):
    """Keras's own export, of inputs under their names."""
    nest = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    model.export(
        str(path),
        format=format,
        input_signature=[nest],
        verbose=False,
        **options,
    )


def _saved_model(model, folder):
    _export(model, folder, "tf_saved_model")


def _litert(model, folder):
    import tensorflow as tf

    operators = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    _export(model, folder / "model.tflite", "litert", target_spec=operators)


def _onnx(model, folder):
    import onnx

    _teach_erfc()
    path = folder / "model.onnx"
    _export(model, path, "onnx", opset_version=ONNX_OPSET)
    onnx.checker.check_model(str(path), full_check=True)


def _openvino(model, folder):
    import openvino

    # It is removed with all else beside `folder`.
    scratch = folder.parent / "saved_model"
    _saved_model(model, scratch)
    converted = openvino.convert_model(scratch)
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _torch(model, folder):
    import torch

    any_length = torch.export.Dim.DYNAMIC
    examples, shapes = [], []
    for tensor in model.inputs:
        # Equal lengths would be taken for one; 0 and 1 for themselves.
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
    # To memory first: if its file cannot be written, torch ends the process.
    archive = io.BytesIO()
    torch.export.save(program, archive)
    (folder / "model.pt2").write_bytes(archive.getvalue())


def _Positional(model):
    """The model as a torch module of one tensor an argument.

    It is no submodule: Keras reads its weights from variables, so that they
    become constants of the program, and would be stored a second time.
    """
    import torch

    class Positional(torch.nn.Module):
        def forward(self, *inputs):
            outputs = model(
                inputs[0] if len(inputs) == 1 else list(inputs), training=False
            )
            return keras.tree.flatten(outputs)

    return Positional()


def _teach_erfc():
    """Lets tf2onnx write `erfc(x)`, which exact GELU is, as `1 - erf(x)`."""
    import numpy as np
    from tf2onnx.handler import tf_op

    class Erfc:
        @classmethod
        def version_9(cls, graph, node, **kwargs):
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


_WRITERS = {
    "tf_saved_model": _saved_model,
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}
