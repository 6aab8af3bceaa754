"""Make tables of the results of `twins.py`, on the screen and in Markdown."""

from statistics import mean

HEAD = (
    "| data | figure | MoE, mean (each seed) | dense twin, mean (each seed) "
    "| floor | parameters, MoE | dense twin | CPU minutes, all "
    "| reloaded | SavedModel |"
)
RULE = "|---" * 10 + "|"


def write_markdown(runs, path):
    """Write one table of the results of several examples."""
    path.write_text(markdown(runs) + "\n")


def markdown(runs):
    """Return the table, with a row per task of each example, and notes."""
    tasks = [task for results in runs for task in results["tasks"]]
    lines = ("| " + " | ".join(row(task)) + " |" for task in tasks)
    return "\n".join([HEAD, RULE, *lines, *generation_notes(tasks)])


def generation_notes(tasks):
    """Yield notes on the speed of generation, which follow the table."""
    for task in tasks:
        more = task.get("more", {})
        times = more.get("cpu_milliseconds_at_position")
        if times:
            each = ", ".join(f"{p}: {ms:.1f}" for p, ms in times.items())
            cpu = more["cpu_seconds"]
            yield (
                f"\n{task['data']}, one generated token with the cache, CPU "
                f"milliseconds at a position: {each}. {more['tokens']} tokens "
                f"take {cpu['cached']:.1f} CPU seconds with the cache and "
                f"{cpu['uncached']:.1f} without."
            )


def row(task):
    """Return the cells of a task."""
    floor = "-"
    if task["floor"]:
        name, value = task["floor"]
        floor = f"{name}: {number(task, value)}"
    return (
        task["data"],
        f"{task['figure']} ({task['better']} is better)",
        figures(task, "moe"),
        figures(task, "dense"),
        floor,
        size(task["parameters"]["moe"]),
        size(task["parameters"]["dense"]),
        f"{cpu_seconds(task) / 60:.1f}",
        f"{task['differences']['reloaded']['largest']:.1e}",
        f"{task['differences']['saved_model']['largest']:.1e}",
    )


def number(task, value):
    """Return a figure as text: losses with four digits, scores with two."""
    return f"{value:.4f}" if task["better"] == "lower" else f"{value:.2f}"


def figures(task, kind):
    """Return the mean over the seeds of a kind, and each value."""
    values = [t[task["figure"]] for t in task["trainings"][kind]]
    each = ", ".join(number(task, value) for value in values)
    return f"{number(task, mean(values))} ({each})"


def size(parameters):
    """Return the parameters as text, in total and active per token."""
    total, active = parameters["total"], parameters["active"]
    return f"{total:,}" + (f" ({active:,} per token)" if active < total else "")


def cpu_seconds(task):
    """Return the CPU time of all trainings of a task."""
    return sum(
        training["cpu_seconds"]
        for trainings in task["trainings"].values()
        for training in trainings
    )


def print_table(results, console):
    """Print a table with one column per task."""
    from rich.table import Table

    table = Table(title=f"{results['name']} on {results['backend']}")
    table.add_column("")
    for _ in results["tasks"]:
        table.add_column(justify="right", overflow="fold")
    names = [name.strip() for name in HEAD.strip("|").split("|")]
    columns = [row(task) for task in results["tasks"]]
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *cells)
    console.print(table)
