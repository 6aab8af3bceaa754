"""Trains, moves and exports a small MoE on real handwritten digits.

    python examples/quickstart.py [--backend jax] [--epochs 12] [--seed 0]

1. Trains a MoE transformer and its dense twin of the same cost per token on
   scikit-learn's digits and evaluates both on a held-out fifth.
2. Loads the MoE's `.keras` file under the two other backends.
3. Exports it to SavedModel and LiteRT and runs both in their own runtimes.
4. Draws which expert served which digit.
5. Prints one table and writes it as `results.json`.

Steps 2 and 3 run in fresh processes and compare probabilities on the held-out
fifth. The exit code is 1 where one of them misses its tolerance.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import quickstart_report as report

BACKENDS = ("jax", "tensorflow", "torch")
TOLERANCES = {"backend": 1e-4, "saved_model": 1e-5, "litert": 1e-4}
PACKAGES = (*BACKENDS, "ai_edge_litert", "matplotlib", "rich", "sklearn")
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
    expected = models["moe"].predict(test_data[0], verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        results["differences"] = check(
            options, Path(folder), test_data[0], expected, console
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


def check(options, folder, images, expected, console):
    """Steps 2 and 3: every backend and artifact, in processes of their own."""
    import numpy as np

    np.savez(folder / "images.npz", images=images)
    model = options.output / "moe.keras"
    others = [b for b in BACKENDS if b != options.backend]
    console.print(f"[bold]Loading moe.keras under {' and '.join(others)}")
    jobs = {name: ("predict", model, name) for name in others}
    differences = run_jobs(jobs, folder, expected)
    console.print("[bold]Exporting and running SavedModel and LiteRT")
    saved_model = options.output / "saved_model"
    litert = options.output / "moe.tflite"
    shutil.rmtree(saved_model, ignore_errors=True)
    litert.unlink(missing_ok=True)
    work("tensorflow", "export", model, saved_model, litert)
    jobs = {
        "saved_model": ("saved_model", saved_model, "tensorflow"),
        "litert": ("litert", litert, "tensorflow"),
    }
    return {**differences, **run_jobs(jobs, folder, expected)}


def run_jobs(jobs, folder, expected):
    """Runs `(command, source, backend)` by name, two at a time; compares."""

    def one(name):
        command, source, backend = jobs[name]
        out = folder / f"{name}.npz"
        work(backend, command, source, folder / "images.npz", out)
        tolerance = TOLERANCES.get(name, TOLERANCES["backend"])
        return name, report.compare(expected, out, tolerance)

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(one, jobs))


def work(backend, *arguments):
    """Runs a job of `quickstart_worker.py` in a fresh process."""
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        job = f"{arguments[0]!r} under {backend}"
        raise QuickstartError(
            f"{job} ended with code {done.returncode}. Its last words:\n"
            + "\n".join(done.stderr.strip().splitlines()[-20:])
        )


if __name__ == "__main__":
    sys.exit(main())
