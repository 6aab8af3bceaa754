"""Start an example: check the packages, set the backend, and import Keras."""

import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("jax", "tensorflow", "torch")
PACKAGES = (*BACKENDS, "matplotlib", "rich", "sklearn")
ROOT = Path(__file__).resolve().parents[2]


class ExampleError(Exception):
    """An error that the user can fix, printed without a traceback."""


def prepare(options):
    """Check packages and output folder, set the backend, and import Keras.

    Args:
        options: object with `backend` (str) and `output` (Path, a folder).

    Raises:
        ExampleError: If a package is missing, if Keras already runs on another
            backend, or if `output` cannot be written to.
    """
    check_packages(PACKAGES)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Threads that spin while they wait starve each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["KERAS_BACKEND"] = options.backend
    with quiet():
        import keras
        import tensorflow  # noqa: F401  (Keras would import it in `fit`)
    if keras.backend.backend() != options.backend:
        raise ExampleError(
            f"Keras already runs on {keras.backend.backend()}. Start a new "
            f"Python for --backend {options.backend}."
        )
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExampleError(
            f"cannot write to {options.output}: {error.strerror}. Choose "
            "another --output."
        ) from error


def check_packages(packages):
    """Raise an `ExampleError` if a package is missing."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ExampleError(
            f"{', '.join(missing)} not installed. Run: "
            'pip install "keras-moe[examples]"'
        )


@contextlib.contextmanager
def quiet():
    """Discard the output to stderr of native code, such as TensorFlow's."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def write_json(results, path):
    """Write results as JSON."""
    path.write_text(json.dumps(results, indent=2) + "\n")
