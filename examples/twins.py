"""Trains a MoE and its dense twin over seeds; three examples share it.

The twins differ in nothing but the feed-forward part: E experts of width F,
K of them a token, or one network of width K * F. Data, order, steps,
optimizer, schedule and seeds are the same.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import common
import numpy as np
import twins_report as report
import typer

KINDS = ("moe", "dense")
NUM_EXPERTS = 8
TOP_K = 2
TOLERANCES = {"reloaded": 0.0, "saved_model": 1e-4}
PACKAGES = ("tensorflow", "rich")

Backend = Annotated[
    Literal["jax", "tensorflow", "torch"], typer.Option(help="Keras backend.")
]
Seeds = Annotated[int, typer.Option(min=1, help="Trainings of each twin.")]
Quick = Annotated[bool, typer.Option(help="Small and fast, not accurate.")]
Output = Annotated[
    Path | None, typer.Option(help="Folder; saved_models/NAME by default.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets.", envvar="KERAS_MOE_DATA_DIR"),
]


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    name: str
    backend: str
    seeds: int
    quick: bool
    output: Path | None = None
    data: Path | None = None

    @property
    def folder(self):
        """Where results go."""
        return self.output or common.SAVED_MODELS / self.name

    def count(self, full, quick):
        """Returns a size: the full one, or the quick form's."""
        return quick if self.quick else full

    def source(self, *parts):
        """Returns the path of a data set; see `common.find_data`."""
        return common.find_data(self.data, *parts)


@dataclass(frozen=True)
class Task:
    """Data, the models for them and how they are judged.

    Args:
        name: of the data.
        figure: what `evaluate` returns that the twins are compared by.
        better: "lower" or "higher".
        build: from E, or None for the dense twin, to a model.
        train: from `(model, seed)`; trains the model.
        evaluate: from a model to a dict of figures on held-out data.
        sample: held-out inputs for what is reloaded and exported.
        floor: `(name, value)` of the figure for something simple, or None.
        more: from the first seed's MoE to a dict for the results, or None.
    """

    name: str
    figure: str
    better: Literal["lower", "higher"]
    build: Callable[[int | None], Any]
    train: Callable[[Any, int], None]
    evaluate: Callable[[Any], dict[str, float]]
    sample: Any
    floor: tuple[str, float] | None = None
    more: Callable[[Any], dict] | None = None


def run(options, packages, make_tasks, sources=()):
    """Runs an example.

    Args:
        options: `Options`.
        packages: names of modules it needs beside PACKAGES.
        make_tasks: from the options to a list of `Task`, once Keras runs.
        sources: data sets that must be there; see `Options.source`.

    Returns:
        The exit code: 1 where something is missing or a difference too large.
    """
    try:
        for parts in sources:
            options.source(*parts)
        common.start(options.backend, (*PACKAGES, *packages), options.folder)
        results = run_tasks(options, make_tasks(options))
    except common.ExampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = options.folder / "results.json"
    differences = {
        f"{task['data']}, {name}": difference
        for task in results["tasks"]
        for name, difference in task["differences"].items()
    }
    return common.report_failures(differences, path)


def run_tasks(options, tasks):
    """Trains, checks and writes every task; returns the results."""
    from rich.console import Console

    console = Console()
    about = {n: getattr(options, n) for n in ("name", "backend", "quick")}
    done = []
    for task in tasks:
        models, result = train_twins(task, options.seeds, console)
        folder = options.folder / task.name
        folder.mkdir(exist_ok=True)
        models["dense"].save(folder / "dense.keras")
        console.print("[bold]Saving, loading and exporting the MoE")
        result["differences"] = check(task.sample, models["moe"], folder)
        if task.more:
            result["more"] = task.more(models["moe"])
        done.append(result)
    results = {**about, "tasks": done}
    common.write_json(results, options.folder / "results.json")
    report.write_markdown([results], options.folder / "results.md")
    report.print_table(results, console)
    console.print(f"Everything is in {options.folder}", soft_wrap=True)
    return results


def train_twins(task, seeds, console):
    """Trains both kinds for each seed.

    Returns:
        The first seed's models by kind, and the task's results.
    """
    from training import count_parameters

    models, trainings, parameters = {}, {kind: [] for kind in KINDS}, {}
    for seed in range(seeds):
        for kind in KINDS:
            model, training = train_one(task, kind, seed)
            console.print(
                f"{task.name}, {kind}, seed {seed}: {task.figure} "
                f"{training[task.figure]:.4f}, {training['seconds']:.0f} s"
            )
            models.setdefault(kind, model)
            trainings[kind].append(training)
            parameters[kind] = count_parameters(model, kind)
    return models, {
        "data": task.name,
        "figure": task.figure,
        "better": task.better,
        "floor": task.floor,
        "parameters": parameters,
        "trainings": trainings,
    }


def train_one(task, kind, seed):
    """Returns a trained model and its figures and times."""
    import keras

    keras.utils.set_random_seed(seed)
    model = task.build(NUM_EXPERTS if kind == "moe" else None)
    cpu, wall = time.process_time(), time.perf_counter()
    task.train(model, seed)
    times = {
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return model, {"seed": seed, **task.evaluate(model), **times}


def check(sample, model, folder):
    """Loads what is saved and runs what is exported; returns differences.

    The SavedModel is made and run by TensorFlow, each in its own process.
    """
    import keras

    def run_model(model):
        return keras.ops.convert_to_numpy(model(sample, training=False))

    path, saved_model = folder / "moe.keras", folder / "saved_model"
    model.save(path)
    again = keras.models.load_model(path, compile=False)
    expected = run_model(model)
    largest = float(np.max(np.abs(run_model(again) - expected)))
    shutil.rmtree(saved_model, ignore_errors=True)
    common.work("tensorflow", "keras_moe", "export", path, saved_model)
    with tempfile.TemporaryDirectory() as temporary:
        inputs, out = (Path(temporary) / n for n in ("in.npz", "out.npz"))
        named = sample if isinstance(sample, dict) else {"inputs": sample}
        np.savez(inputs, **named)
        common.work(
            "tensorflow", "keras_moe", "saved_model", saved_model, inputs, out
        )
        exported = common.compare(expected, out, TOLERANCES["saved_model"])
    reloaded = common.difference(largest, TOLERANCES["reloaded"])
    return {"reloaded": reloaded, "saved_model": exported}
