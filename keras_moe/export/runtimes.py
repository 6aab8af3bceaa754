"""Runs an artifact in its own runtime, without keras_moe.

    python runtimes.py FORMAT ARTIFACT INPUTS.npz OUTPUTS.npz

`INPUTS.npz` holds arrays named `0/tokens`: the batch, then the input. The
outputs are named `0/0`: the batch, then the output. Run as a script this file
shows that an artifact needs nothing of what made it; it must import nothing
from the package.
"""

import contextlib
import fnmatch
import importlib.util
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable

import numpy as np

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class RefusedError(ValueError):
    """An artifact may run code of its author when it is loaded."""


def load(format: str, path: str, threads: int | None = None) -> Run:
    """Return a function from named inputs to the list of outputs.

    Args:
        format: One of the formats.
        path: Path of the artifact's file, or folder.
        threads: Number of threads that the runtime may use. `None` (the
            default) leaves the choice to the runtime.

    Raises:
        RefusedError: If a PyTorch program could run code of its author.
    """
    return _LOADERS[format](path, threads)


def _saved_model(path, threads):
    import tensorflow as tf

    if threads:  # an error where TensorFlow already computes
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    with _found_by_pattern(path) as found:
        module = tf.saved_model.load(found)
    serve = module.signatures["serve"]

    def run(inputs):
        tensors = {name: tf.constant(x) for name, x in inputs.items()}
        return _in_order(serve(**tensors))

    # Its variables live as long as it does.
    run.module = module  # type: ignore[attr-defined]
    return run


@contextlib.contextmanager
def _found_by_pattern(path):
    """Yield a path that TensorFlow reads as it is, a link to it if need be.

    It takes brackets and backslashes in the path of variables for a pattern.
    """
    plain = pathlib.Path(path).as_posix()
    if fnmatch.fnmatchcase(plain, plain) and "\\" not in plain:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, "artifact")
        link.symlink_to(pathlib.Path(path).absolute(), target_is_directory=True)
        yield str(link)


def _litert(path, threads):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    serve = interpreter.get_signature_runner("serving_default")
    return lambda inputs: _in_order(serve(**inputs))


def _onnx(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, inputs)


def _openvino(path, threads):
    with warnings.catch_warnings():
        # It counts imports in a forked process, of which JAX warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = openvino.Core().compile_model(path, "CPU", properties)

    def run(inputs):
        outputs = compiled(inputs)
        return _in_order({p.any_name: outputs[p] for p in compiled.outputs})

    return run


def _torch(path, threads):
    import torch

    if threads:
        torch.set_num_threads(threads)
    _refuse_pickles(path)
    module = torch.export.load(path).module()

    def run(inputs):
        with torch.no_grad():
            outputs = module(*(torch.as_tensor(x) for x in inputs.values()))
        return [y.numpy() for y in outputs]

    return run


def _refuse_pickles(path):
    refusal = _beside("torch_archive").refusal(path)
    if refusal:
        raise RefusedError(
            f"{path} must hold nothing that could run code when it is loaded, "
            f"only what keras_moe writes. Received: {refusal}. Load it with "
            "torch.export.load only if you trust its author."
        )


def _beside(name):
    """Import a module that lies beside this file, without the package."""
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_order(outputs):
    """A dict's values by name, `output_10` after `output_9`."""

    def key(name):
        parts = re.split(r"(\d+)", name)
        return [int(p) if p.isdigit() else p for p in parts]

    return [np.asarray(outputs[name]) for name in sorted(outputs, key=key)]


_LOADERS = {
    "tf_saved_model": _saved_model,
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}


def main(format: str, path: str, inputs_path: str, outputs_path: str) -> None:
    """Runs every batch of a file."""
    batches: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs_path) as arrays:
        for key, array in arrays.items():
            batch, name = key.split("/", 1)
            batches.setdefault(batch, {})[name] = array
    run = load(format, path)
    outputs = {}
    for batch, inputs in batches.items():
        for i, output in enumerate(run(inputs)):
            outputs[f"{batch}/{i}"] = output
    if "keras_moe" in sys.modules:
        raise RuntimeError("an artifact must run without keras_moe")
    np.savez(outputs_path, **outputs)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
