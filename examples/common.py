"""What the examples share: a quiet start and jobs in fresh processes.

Nothing here imports Keras before `start` has chosen its backend.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

BACKENDS = ("jax", "tensorflow", "torch")
SAVED_MODELS = Path(__file__).resolve().parents[1] / "saved_models"
WORKER = Path(__file__).resolve().with_name("worker.py")


class ExampleError(Exception):
    """Something the user can act on; shown without a traceback."""


def start(backend, packages, output):
    """Checks the packages, sets the backend, imports Keras quietly.

    Args:
        backend: one of BACKENDS.
        packages: names of modules that must be installed.
        output: `Path` of a folder to write to; it is made.

    Raises:
        ExampleError: for a package that is missing, another backend that
            already runs, or a folder that cannot be written.
    """
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ExampleError(
            f"{', '.join(missing)} not installed. Run: "
            'pip install "keras-moe[examples]"'
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Threads that spin while they wait starve each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["KERAS_BACKEND"] = backend
    with quiet():
        import keras
        import tensorflow  # noqa: F401  (Keras would import it in `fit`)
    if keras.backend.backend() != backend:
        raise ExampleError(
            f"Keras already runs on {keras.backend.backend()}. Start a new "
            f"Python for --backend {backend}."
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(
            f"cannot write to {output}: {error.strerror}. Choose another "
            "--output."
        ) from error


@contextlib.contextmanager
def quiet():
    """Drops what native code writes to stderr; TensorFlow's import does."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def work(backend, *arguments):
    """Runs a job of `worker.py` in a fresh process.

    Raises:
        ExampleError: where it fails, with its last words.
    """
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ExampleError(
            f"{arguments[1]!r} under {backend} ended with code "
            f"{done.returncode}. Its last words:\n"
            + "\n".join(done.stderr.strip().splitlines()[-20:])
        )


def find_data(folder, *parts):
    """Returns the path of a data set that the user has.

    Args:
        folder: of data sets, or the file itself, or None.
        *parts: the path below the folder.

    Raises:
        ExampleError: where there is nothing.
    """
    if folder is None:
        raise ExampleError(
            f"no data. Name the folder that {'/'.join(parts)} is in by --data "
            "or KERAS_MOE_DATA_DIR."
        )
    path = folder if folder.is_file() else folder.joinpath(*parts)
    if not path.exists():
        raise ExampleError(
            f"{path} does not exist. Name the folder that {'/'.join(parts)} "
            "is in by --data."
        )
    return path


def write_json(results, path):
    """Writes the results."""
    path.write_text(json.dumps(results, indent=2) + "\n")


def compare(expected, path, tolerance):
    """Returns the largest difference of a worker's arrays from `expected`."""
    with np.load(path) as arrays:
        largest = max(
            float(np.max(np.abs(arrays[name] - expected))) for name in arrays
        )
    return difference(largest, tolerance)


def difference(largest, tolerance):
    """Returns a difference, its tolerance, and whether it is within."""
    passed = bool(largest <= tolerance)  # False for NaN
    return {"largest": largest, "tolerance": tolerance, "passed": passed}


def report_failures(differences, results_path):
    """Prints an error for each miss; returns the program's exit code."""
    missed = [name for name, d in differences.items() if not d["passed"]]
    for name in missed:
        d = differences[name]
        print(
            f"error: {name} differs from the trained model by "
            f"{d['largest']:.1e}, more than {d['tolerance']:.0e}. Please "
            f"report it with {results_path}.",
            file=sys.stderr,
        )
    return 1 if missed else 0
