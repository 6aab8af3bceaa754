"""Train a MoE and its dense twin with several seeds.

The twins differ only in the feed-forward part: E experts of width F, of which
each token uses K, or one network of width K * F. Data, order, steps, optimizer,
schedule, and seeds are the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from shared import checks, twins_table
from shared.options import start
from shared.program import write_json

KINDS = ("moe", "dense")
NUM_EXPERTS = 8
TOP_K = 2
RELOADED_TOLERANCE = 0.0


@dataclass(frozen=True)
class Task:
    """Describes a data set, the models for it, and their evaluation.

    Args:
        name: str. Name of the data.
        figure: str. The figure of `evaluate` by which the twins are compared.
        better: "lower" or "higher". Which figure is better.
        build: function from the arguments that differ between the twins,
            including their name, to a model.
        train: function of `(model, seed)` that trains the model.
        evaluate: function from a model to a dict of figures on held-out data.
        sample: Held-out inputs, on which the reloaded and the exported model
            are compared with the MoE.
        floor: `(name, value)` of the figure of a simple baseline, or None.
        more: function from the MoE of the first seed to a dict for the
            results, or None. Its "differences" are checked with the others.
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
    """Run an example.

    Args:
        options: `Options`.
        packages: Names of modules that the example needs, in addition to the
            quickstart's.
        make_tasks: function from the options to a list of `Task`, called after
            Keras is imported.
        sources: Data sets that must exist; see `Options.source`.

    Returns:
        int. The exit code, which is 1 if a requirement is missing or a
        difference is too large.
    """
    return start(
        options,
        lambda options: report_tasks(options, make_tasks(options)),
        packages,
        sources,
    )


def report_tasks(options, tasks):
    """Run the tasks; return 1 if a difference is too large."""
    results = run_tasks(options, tasks)
    differences = {
        f"{task['data']}, {name}": difference
        for task in results["tasks"]
        for name, difference in task["differences"].items()
    }
    path = options.output / "results.json"
    return checks.report_failures({"differences": differences}, path)


def run_tasks(options, tasks):
    """Train, check, and write every task; return the results."""
    from rich.console import Console

    console = Console()
    about = {n: getattr(options, n) for n in ("name", "backend", "quick")}
    done = []
    for task in tasks:
        models, result = train_twins(task, options.seeds, console)
        folder = options.output / task.name
        folder.mkdir(exist_ok=True)
        models["dense"].save(folder / "dense.keras")
        console.print("[bold]Saving, loading, and exporting the MoE")
        result["differences"] = check(task.sample, models["moe"], folder)
        if task.more:
            result["more"] = task.more(models["moe"])
            result["differences"] |= result["more"].pop("differences", {})
        done.append(result)
    results = {**about, "tasks": done}
    write_json(results, options.output / "results.json")
    twins_table.write_markdown([results], options.output / "results.md")
    twins_table.print_table(results, console)
    console.print(f"Everything is in {options.output}", soft_wrap=True)
    return results


def train_twins(task, seeds, console):
    """Train both kinds for each seed.

    Returns:
        The models of the first seed by kind, and the results of the task.
    """
    from shared.digits import count_parameters

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
    """Return a trained model and its figures and times."""
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


def fit(model, data, batch_size, epochs, peak, shuffle=True):
    """Train a model that outputs logits with AdamW.

    `data` is `(inputs, targets, weights)`, where targets are ids. The loss is
    the mean cross-entropy, in nats, of the targets whose weight is 1. The
    learning rate rises to `peak` and falls to 0.
    """
    import keras

    from shared.digits import learning_rate

    inputs, targets, weights = data
    steps = epochs * -(-len(targets) // batch_size)
    model.compile(
        keras.optimizers.AdamW(
            learning_rate(steps, peak), weight_decay=0.01, clipnorm=1.0
        ),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    model.fit(
        inputs,
        targets,
        sample_weight=weights,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        verbose=0,
    )


def check(sample, model, folder):
    """Save, reload, and export a model; return the differences."""
    import keras

    model.save(folder / "moe.keras")
    expected = outputs(model, sample)
    again = keras.models.load_model(folder / "moe.keras", compile=False)
    largest = float(np.max(np.abs(outputs(again, sample) - expected)))
    return {
        "reloaded": checks.judge(largest, RELOADED_TOLERANCE),
        "saved_model": checks.export(
            model, folder / "saved_model", "tf_saved_model", sample
        ),
    }


def outputs(model, inputs):
    """Return the outputs of a model outside training."""
    import keras

    return keras.ops.convert_to_numpy(model(inputs, training=False))
