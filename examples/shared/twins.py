"""Trains a MoE and its dense twin over seeds; three examples share it.

The twins differ in nothing but the feed-forward part: E experts of width F,
K of them a token, or one network of width K * F. Data, order, steps,
optimizer, schedule and seeds are the same.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import quickstart
import twins_report as report
import typer
from quickstart import QuickstartError
from quickstart_report import write_json

KINDS = ("moe", "dense")
NUM_EXPERTS = 8
TOP_K = 2

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


@dataclass
class Options:
    """What the command line says; `output` and `data` are folders."""

    name: str
    backend: str
    seeds: int
    quick: bool
    output: Path | None = None
    data: Path | None = None

    def __post_init__(self):
        folder = quickstart.ROOT / "saved_models" / self.name
        self.output = self.output or folder

    def count(self, full, quick):
        """Returns a size: the full one, or the quick form's."""
        return quick if self.quick else full

    def source(self, *parts):
        """Returns the path of a data set below `data`, or `data` if a file.

        Raises:
            QuickstartError: where there is nothing.
        """
        remedy = f"Name the folder that {'/'.join(parts)} is in by --data"
        if self.data is None:
            raise QuickstartError(f"no data. {remedy} or KERAS_MOE_DATA_DIR.")
        if self.data.is_file():
            return self.data
        path = self.data.joinpath(*parts)
        if not path.exists():
            raise QuickstartError(f"{path} does not exist. {remedy}.")
        return path


@dataclass(frozen=True)
class Task:
    """Data, the models for them and how they are judged.

    Args:
        name: of the data.
        figure: what `evaluate` returns that the twins are compared by.
        better: "lower" or "higher".
        build: from the model's arguments that tell the twins apart, its name
            among them, to a model.
        train: from `(model, seed)`; trains the model.
        evaluate: from a model to a dict of figures on held-out data.
        sample: held-out inputs for what is reloaded and exported.
        floor: `(name, value)` of the figure for something simple, or None.
        more: from the first seed's MoE to a dict for the results, or None;
            its "differences" are judged with the others.
    """

    name: str
    figure: str
    better: Literal["lower", "higher"]
    build: Callable[..., Any]
    train: Callable[[Any, int], None]
    evaluate: Callable[[Any], dict[str, float]]
    sample: Any
    floor: tuple[str, float] | None = None
    more: Callable[[Any], dict] | None = None


def run(options, packages, make_tasks, sources=()):
    """Runs an example.

    Args:
        options: `Options`.
        packages: names of modules it needs beside the quickstart's.
        make_tasks: from the options to a list of `Task`, once Keras runs.
        sources: data sets that must be there; see `Options.source`.

    Returns:
        The exit code: 1 where something is missing or a difference too large.
    """
    return start(
        options,
        lambda options: report_tasks(options, make_tasks(options)),
        packages,
        sources,
    )


def start(options, job, packages, sources):
    """Checks what must be there, starts Keras and returns the job's code."""
    try:
        for parts in sources:
            options.source(*parts)
        check_packages(packages)
        quickstart.prepare(options)
        return job(options)
    except QuickstartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def report_tasks(options, tasks):
    """Runs the tasks; returns 1 where a difference is too large."""
    results = run_tasks(options, tasks)
    differences = {
        f"{task['data']}, {name}": difference
        for task in results["tasks"]
        for name, difference in task["differences"].items()
    }
    path = options.output / "results.json"
    return quickstart.blame({"differences": differences}, path)


def check_packages(packages):
    """Raises a `QuickstartError` where one is missing."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise QuickstartError(
            f"{', '.join(missing)} not installed. Run: "
            'pip install "keras-moe[examples]"'
        )


def run_tasks(options, tasks):
    """Trains, checks and writes every task; returns the results."""
    import twins_model
    from rich.console import Console

    console = Console()
    about = {n: getattr(options, n) for n in ("name", "backend", "quick")}
    done = []
    for task in tasks:
        models, result = train_twins(task, options.seeds, console)
        folder = options.output / task.name
        folder.mkdir(exist_ok=True)
        models["dense"].save(folder / "dense.keras")
        console.print("[bold]Saving, loading and exporting the MoE")
        result["differences"] = twins_model.check(
            task.sample, models["moe"], folder
        )
        if task.more:
            result["more"] = task.more(models["moe"])
            result["differences"] |= result["more"].pop("differences", {})
        done.append(result)
    results = {**about, "tasks": done}
    write_json(results, options.output / "results.json")
    report.write_markdown([results], options.output / "results.md")
    report.print_table(results, console)
    console.print(f"Everything is in {options.output}", soft_wrap=True)
    return results


def train_twins(task, seeds, console):
    """Trains both kinds for each seed.

    Returns:
        The first seed's models by kind, and the task's results.
    """
    from quickstart_model import count_parameters

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
            parameters[kind] = count_parameters(model)
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
    num_experts = NUM_EXPERTS if kind == "moe" else None
    model = task.build(name=kind, num_experts=num_experts, top_k=TOP_K)
    cpu, wall = time.process_time(), time.perf_counter()
    task.train(model, seed)
    times = {
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    return model, {"seed": seed, **task.evaluate(model), **times}
