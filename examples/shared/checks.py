"""Compare a model with its file on other backends, and with its exports."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from shared.program import ExampleError

TOLERANCE = 1e-4
FORMATS = {
    "tf_saved_model": "SavedModel",
    "litert": "LiteRT",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "torch": "PyTorch program",
}
QUICK_FORMATS = ("tf_saved_model", "litert")
WORKER = Path(__file__).resolve().with_name("predict_file.py")


def predict_elsewhere(backends, folder, path, inputs, expected):
    """Run a `.keras` file under other backends; return the differences.

    Args:
        backends: Names of backends.
        folder: Folder for intermediate files.
        path: The `.keras` file.
        inputs: Array of inputs.
        expected: Array of the outputs on the training backend.

    Returns:
        dict from each backend to the dict that `judge` returns.
    """
    np.savez(folder / "inputs.npz", inputs=inputs)

    def one(backend):
        out = folder / f"{backend}.npz"
        work(backend, path, folder / "inputs.npz", out)
        return backend, compare(expected, out, TOLERANCE)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, backends))


def work(backend, *arguments):
    """Run `predict_file.py` in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ExampleError(
            f"{arguments[0]} under {backend} ended with code "
            f"{done.returncode}. The end of its output:\n"
            + "\n".join(done.stderr.strip().splitlines()[-20:])
        )


def export(model, path, format, data):
    """Export and verify a model; return its largest difference."""
    import keras_moe

    try:
        manifest = keras_moe.export.export(model, path, format, data=data)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ExampleError(str(error)) from error
    verified = manifest["verified"]
    return judge(verified["largest_difference"], verified["tolerance"])


def compare(expected, path, tolerance):
    """Return the largest difference of a worker's arrays from `expected`."""
    with np.load(path) as arrays:
        largest = max(
            float(np.max(np.abs(arrays[name] - expected))) for name in arrays
        )
    return judge(largest, tolerance)


def judge(largest, tolerance):
    """Return a difference, its tolerance, and whether it is within that."""
    passed = bool(largest <= tolerance)  # False for NaN
    return {"largest": largest, "tolerance": tolerance, "passed": passed}


def failures(results):
    """Return the names of the differences that exceed their tolerance."""
    differences = results["differences"].items()
    return [name for name, d in differences if not d["passed"]]


def report_failures(results, path):
    """Print an error per difference that is too large; return the exit code."""
    missed = failures(results)
    for name in missed:
        d = results["differences"][name]
        print(
            f"error: {name} differs from the trained model by "
            f"{d['largest']:.1e}, more than {d['tolerance']:.0e}. Please "
            f"report this with {path}.",
            file=sys.stderr,
        )
    return 1 if missed else 0
