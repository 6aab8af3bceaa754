"""Run an artifact in its own runtime, without keras_moe.

    python runtimes.py FORMAT ARTIFACT INPUTS.npz OUTPUTS.npz

Arrays in `INPUTS.npz` are named like `0/tokens`: the number of the batch, then
the name of the input. Outputs are named like `0/0`: the number of the batch,
then that of the output. When this file runs as a script, it proves that an
artifact needs neither Keras nor keras_moe, so it must import nothing from the
package.
"""

import contextlib
import fnmatch
import importlib.util
import pathlib
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

Run: TypeAlias = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""A function from the inputs by name to the list of outputs."""


class RefusedError(ValueError):
    """Report that an artifact may run code of its author when it is loaded."""


def load(format: str, path: str, threads: int | None = None) -> Run:
    """Load an artifact into its runtime.

    Args:
        format: Name of the artifact's format.
        path: Path of the artifact's file or folder.
        threads: Number of threads that the runtime may use. `None` (the
            default) leaves the choice to the runtime.

    Returns:
        Function from a dict of inputs by name to the list of outputs.

    Raises:
        RefusedError: If a PyTorch program could run code of its author.
    """
    return _LOADERS[format](path, threads)


def _saved_model(path: str, threads: int | None) -> Run:
    import tensorflow as tf

    if threads:  # an error if TensorFlow has already computed anything
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    with _found_by_pattern(path) as found:
        module = tf.saved_model.load(found)
    serve = module.signatures["serve"]

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        tensors = {name: tf.constant(x) for name, x in inputs.items()}
        return _in_order(serve(**tensors))

    # The variables of a SavedModel live as long as its module.
    run.module = module  # type: ignore[attr-defined]
    return run


@contextlib.contextmanager
def _found_by_pattern(path: str) -> Iterator[str]:
    """Yield a path that TensorFlow finds: the path itself, or a link to it.

    TensorFlow matches the path of variables as a pattern, so brackets and
    backslashes in it have another meaning.
    """
    plain = pathlib.Path(path).as_posix()
    if fnmatch.fnmatchcase(plain, plain) and "\\" not in plain:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder, "artifact")
        link.symlink_to(pathlib.Path(path).absolute(), target_is_directory=True)
        yield str(link)


def _litert(path: str, threads: int | None) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    serve = interpreter.get_signature_runner("serving_default")
    return lambda inputs: _in_order(serve(**inputs))


def _onnx(path: str, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, inputs)


def _openvino(path: str, threads: int | None) -> Run:
    with warnings.catch_warnings():
        # The import forks a process, and JAX warns of that.
        warnings.simplefilter("ignore", RuntimeWarning)
        import openvino

    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = openvino.Core().compile_model(path, "CPU", properties)

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = compiled(inputs)
        return _in_order({p.any_name: outputs[p] for p in compiled.outputs})

    return run


def _torch(path: str, threads: int | None) -> Run:
    import torch

    if threads:
        torch.set_num_threads(threads)
    _refuse_pickles(path)
    module = torch.export.load(path).module()

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = module(*(torch.as_tensor(x) for x in inputs.values()))
        return [y.numpy() for y in outputs]

    return run


def _refuse_pickles(path: str) -> None:
    refusal = _beside("torch_archive").refusal(path)
    if refusal:
        raise RefusedError(
            f"{path} must contain only what keras_moe writes, and nothing "
            f"that could run code when it is loaded. Received: {refusal}. Load "
            "it with torch.export.load only if you trust its author."
        )


def _beside(name: str) -> ModuleType:
    """Import a module from the folder of this file, without the package."""
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_order(outputs: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the values in the order of names, `output_10` after `output_9`."""

    def key(name: str) -> list[int | str]:
        parts = re.split(r"(\d+)", name)
        return [int(p) if p.isdigit() else p for p in parts]

    return [np.asarray(outputs[name]) for name in sorted(outputs, key=key)]


_LOADERS: dict[str, Callable[[str, int | None], Run]] = {
    "tf_saved_model": _saved_model,
    "litert": _litert,
    "onnx": _onnx,
    "openvino": _openvino,
    "torch": _torch,
}


def main(format: str, path: str, inputs_path: str, outputs_path: str) -> None:
    """Run an artifact on every batch of a file, and write the outputs."""
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
