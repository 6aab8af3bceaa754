"""Trains, moves and exports a small MoE on real handwritten digits.

    python examples/quickstart.py [--backend jax] [--epochs 12] [--seed 0]

1. Trains a MoE transformer and its dense twin of the same cost per token on
   scikit-learn's digits and evaluates both on a held-out fifth.
2. Loads the MoE's `.keras` file under the two other backends.
3. Exports it to SavedModel, LiteRT, ONNX, OpenVINO and a PyTorch program, each
   verified in its own runtime at several batch sizes.
4. Draws which expert served which digit.
5. Prints one table and writes it as `results.json`.

Steps 2 and 3 run in fresh processes and compare probabilities on the held-out
fifth. The exit code is 1 where one of them misses its tolerance.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import quickstart_report as report

BACKENDS = ("jax", "tensorflow", "torch")
TOLERANCE = 1e-4
PACKAGES = (*BACKENDS, "matplotlib", "rich", "sklearn")
ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().with_name("quickstart_worker.py")


class QuickstartError(Exception):
    """Something the user can act on; shown without a traceback."""


def main(arguments=None):
    """Runs the program; returns its exit code."""
    options = parse(arguments)
    try:
        prepare(options)
        results = run(options)
    except QuickstartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return blame(results, options.output / "results.json")


def blame(results, path):
    """Prints an error for each difference too large; returns the exit code."""
    missed = report.failures(results)
    for name in missed:
        d = results["differences"][name]
        print(
            f"error: {name} differs from the trained model by "
            f"{d['largest']:.1e}, more than {d['tolerance']:.0e}. Please "
            f"report it with {path}.",
            file=sys.stderr,
        )
    return 1 if missed else 0


def parse(arguments):
    """Returns the options; nothing heavy is imported yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, default="jax")
    parser.add_argument("--epochs", type=positive)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "saved_models" / "quickstart"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="small and fast, not accurate"
    )
    options = parser.parse_args(arguments)
    options.epochs = options.epochs or (3 if options.quick else 12)
    return options


def positive(text):
    """Returns `text` as an integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be an integer above 0")
    return value


def prepare(options):
    """Checks the packages, sets the backend, imports Keras quietly."""
    missing = [p for p in PACKAGES if importlib.util.find_spec(p) is None]
    if missing:
        raise QuickstartError(
            f"{', '.join(missing)} not installed. Run: "
            'pip install "keras-moe[examples]"'
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Threads that spin while they wait starve each other on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["KERAS_BACKEND"] = options.backend
    with quiet():
        import keras
        import tensorflow  # noqa: F401  (Keras would import it in `fit`)
    if keras.backend.backend() != options.backend:
        raise QuickstartError(
            f"Keras already runs on {keras.backend.backend()}. Start a new "
            f"Python for --backend {options.backend}."
        )
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuickstartError(
            f"cannot write to {options.output}: {error.strerror}. Choose "
            "another --output."
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


def run(options):
    """Does the five steps; returns the results."""
    import quickstart_model
    from rich.console import Console

    console, start = Console(), time.perf_counter()
    shifts = quickstart_model.SHIFTS[: 1 if options.quick else None]
    train_data, test_data = quickstart_model.load_data(shifts)
    models, results = train_both(options, train_data, test_data, console)
    with tempfile.TemporaryDirectory() as folder:
        results["differences"] = check(
            options, Path(folder), test_data[0], models["moe"], console
        )
    counts = quickstart_model.route(models["moe"], *test_data)
    report.draw_routing(counts, options.output / "routing.png")
    results["tokens_per_expert"] = {
        name: table.sum(0).tolist() for name, table in counts.items()
    }
    results["seconds"] = round(time.perf_counter() - start, 1)
    report.print_table(results, console)
    report.write_json(results, options.output / "results.json")
    console.print(f"Everything is in {options.output}", soft_wrap=True)
    return results


def train_both(options, train_data, test_data, console):
    """Step 1: trains, evaluates and saves the MoE and its dense twin."""
    from quickstart_model import count_parameters, train

    names = ("accuracy", "parameters", "training_seconds")
    models, results = {}, {name: {} for name in names}
    for kind in ("moe", "dense"):
        console.print(f"[bold]Training {kind} on {options.backend}")
        start = time.perf_counter()
        model = train(kind, train_data, options.epochs, options.seed)
        seconds = round(time.perf_counter() - start, 1)
        evaluation = model.evaluate(*test_data, verbose=0, return_dict=True)
        results["accuracy"][kind] = float(evaluation["accuracy"])
        results["parameters"][kind] = count_parameters(model)
        results["training_seconds"][kind] = seconds
        model.save(options.output / f"{kind}.keras")
        models[kind] = model
    about = {name: getattr(options, name) for name in ABOUT}
    return models, {**about, **results}


ABOUT = ("backend", "seed", "epochs", "quick")
ALL_FORMATS = {
    "tf_saved_model": "SavedModel",
    "litert": "LiteRT",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "torch": "PyTorch program",
}
QUICK_FORMATS = ("tf_saved_model", "litert")


def check(options, folder, images, model, console):
    """Steps 2 and 3: every backend and artifact, in processes of their own."""
    others = [b for b in BACKENDS if b != options.backend]
    console.print(f"[bold]Loading moe.keras under {' and '.join(others)}")
    expected = model.predict(images, verbose=0)
    path = options.output / "moe.keras"
    elsewhere = predict_elsewhere(others, folder, path, images, expected)
    console.print("[bold]Exporting, and running what was exported")
    formats = QUICK_FORMATS if options.quick else ALL_FORMATS
    artifacts = {
        ALL_FORMATS[format]: export(
            model, options.output / format, format, images
        )
        for format in formats
    }
    return {**elsewhere, **artifacts}


def predict_elsewhere(backends, folder, path, images, expected):
    """A `.keras` file under other backends; returns differences."""
    import numpy as np

    np.savez(folder / "images.npz", images=images)

    def one(backend):
        out = folder / f"{backend}.npz"
        work(backend, path, folder / "images.npz", out)
        return backend, report.compare(expected, out, TOLERANCE)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, backends))


def export(model, path, format, data):
    """Exports and verifies; returns the difference that was found."""
    import keras_moe

    try:
        manifest = keras_moe.export.export(model, path, format, data=data)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise QuickstartError(str(error)) from error
    verified = manifest["verified"]
    return report.judge(verified["largest_difference"], verified["tolerance"])


def work(backend, *arguments):
    """Runs `quickstart_worker.py` in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise QuickstartError(
            f"{arguments[0]} under {backend} ended with code "
            f"{done.returncode}. Its last words:\n"
            + "\n".join(done.stderr.strip().splitlines()[-20:])
        )


if __name__ == "__main__":
    sys.exit(main())
