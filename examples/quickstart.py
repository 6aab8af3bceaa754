"""Train, move, and export a small MoE on real handwritten digits.

    python examples/quickstart.py [--backend jax] [--epochs 12] [--seed 0]

The example does five steps:

1. It trains a MoE transformer and its dense twin of the same cost per token on
   scikit-learn's digits, and evaluates both on a held-out fifth. The data and
   the models are defined in `shared/digits.py`.
2. It loads the MoE's `.keras` file under the two other backends.
3. It exports the MoE to SavedModel, LiteRT, ONNX, OpenVINO, and a PyTorch
   program, and verifies each in its own runtime at several batch sizes.
4. It draws which experts computed the tokens of which digit.
5. It prints one table and writes the results to `results.json`.

Steps 2 and 3 run in fresh processes and compare probabilities on the held-out
fifth. The exit code is 1 if a difference exceeds its tolerance.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from shared import checks
from shared.program import BACKENDS, ROOT, ExampleError, prepare, write_json

OPTIONS = ("backend", "seed", "epochs", "quick")


def main(arguments=None):
    """Run the example; return its exit code."""
    options = parse(arguments)
    try:
        prepare(options)
        results = run(options)
    except ExampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return checks.report_failures(results, options.output / "results.json")


def parse(arguments):
    """Return the options of the command line."""
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
    """Return `text` as an integer above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be an integer above 0")
    return value


def run(options):
    """Run the five steps; return the results."""
    from rich.console import Console

    from shared import digits

    console, start = Console(), time.perf_counter()
    shifts = digits.SHIFTS[: 1 if options.quick else None]
    train_data, test_data = digits.load_data(shifts)
    models, results = train_both(options, train_data, test_data, console)
    with tempfile.TemporaryDirectory() as folder:
        results["differences"] = check(
            options, Path(folder), test_data[0], models["moe"], console
        )
    counts = digits.route(models["moe"], *test_data)
    draw_routing(counts, options.output / "routing.png")
    results["tokens_per_expert"] = {
        name: table.sum(0).tolist() for name, table in counts.items()
    }
    results["seconds"] = round(time.perf_counter() - start, 1)
    print_table(results, console)
    write_json(results, options.output / "results.json")
    console.print(f"Everything is in {options.output}", soft_wrap=True)
    return results


def train_both(options, train_data, test_data, console):
    """Run step 1: train, evaluate, and save the MoE and its dense twin."""
    from shared.digits import count_parameters, train

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
    about = {name: getattr(options, name) for name in OPTIONS}
    return models, {**about, **results}


def check(options, folder, images, model, console):
    """Run steps 2 and 3, each backend and artifact in a separate process."""
    others = [b for b in BACKENDS if b != options.backend]
    console.print(f"[bold]Loading moe.keras under {' and '.join(others)}")
    expected = model.predict(images, verbose=0)
    path = options.output / "moe.keras"
    elsewhere = checks.predict_elsewhere(others, folder, path, images, expected)
    console.print("[bold]Exporting, and running the exported artifacts")
    formats = checks.QUICK_FORMATS if options.quick else checks.FORMATS
    artifacts = {
        checks.FORMATS[format]: checks.export(
            model, options.output / format, format, images
        )
        for format in formats
    }
    return {**elsewhere, **artifacts}


def draw_routing(counts, path):
    """Run step 4: draw the share of each digit per expert, by block.

    Args:
        counts: dict from the block's name to int `(10, E)`.
        path: Path of the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(counts), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    shares = {n: c / c.sum(1, keepdims=True) for n, c in counts.items()}
    top = max(float(share.max()) for share in shares.values())
    for ax, (name, share) in zip(axes, shares.items(), strict=True):
        image = ax.imshow(share, cmap="viridis", vmin=0, vmax=top)
        ax.set(title=name, xlabel="expert", ylabel="digit")
        ax.set_xticks(range(share.shape[1]))
        ax.set_yticks(range(share.shape[0]))
    figure.colorbar(image, ax=axes, label="share of the digit's routed tokens")
    figure.suptitle("Which expert computes which digit (held-out images)")
    figure.savefig(path, dpi=120)


def print_table(results, console):
    """Run step 5: print the table."""
    from rich.table import Table

    title = f"keras_moe on {results['backend']}, seed {results['seed']}"
    table = Table(title=title)
    table.add_column("held-out digits")
    table.add_column("MoE", justify="right")
    table.add_column("dense twin", justify="right")
    for row in (*_model_rows(results), None, *_load_rows(results)):
        _add(table, row)
    table.add_section()
    for row in _difference_rows(results):
        _add(table, row)
    table.add_section()
    table.add_row("wall time in total", f"{results['seconds']:.0f} s", "")
    console.print(table)


def _add(table, row):
    if row is None:
        table.add_section()
    else:
        table.add_row(*row)


def _model_rows(results):
    def row(label, values, form):
        return label, form(values["moe"]), form(values["dense"])

    total = {k: v["total"] for k, v in results["parameters"].items()}
    active = {k: v["active"] for k, v in results["parameters"].items()}
    return [
        row("accuracy", results["accuracy"], "{:.4f}".format),
        row("parameters in total", total, "{:,}".format),
        row("parameters active per token", active, "{:,}".format),
        row("training time", results["training_seconds"], "{:.0f} s".format),
    ]


def _load_rows(results):
    for name, counts in results["tokens_per_expert"].items():
        counts = " ".join(str(count) for count in counts)
        yield f"tokens per expert, {name}", counts, ""


def _difference_rows(results):
    for name, d in results["differences"].items():
        mark = "" if d["passed"] else "  MISSED"
        value = f"{d['largest']:.1e} (<= {d['tolerance']:.0e}){mark}"
        yield f"largest difference, {name}", value, ""


if __name__ == "__main__":
    sys.exit(main())
