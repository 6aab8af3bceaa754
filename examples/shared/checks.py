"""What `quickstart.py` shows at the end: a picture, a table, a JSON file."""

import json

import numpy as np


def draw_routing(counts, path):
    """Draws which expert served which digit, one heat map a block.

    Args:
        counts: dict from the block's name to int `(10, E)`.
        path: of the PNG.
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
    figure.suptitle("Which expert served which digit (held-out images)")
    figure.savefig(path, dpi=120)


def compare(expected, path, tolerance):
    """Returns the largest difference of a worker's arrays from `expected`."""
    with np.load(path) as arrays:
        largest = max(
            float(np.max(np.abs(arrays[name] - expected))) for name in arrays
        )
    return judge(largest, tolerance)


def judge(largest, tolerance):
    """Returns a difference, its tolerance and whether it is within."""
    passed = bool(largest <= tolerance)  # False for NaN
    return {"largest": largest, "tolerance": tolerance, "passed": passed}


def failures(results):
    """Returns the names of what missed its tolerance."""
    differences = results["differences"].items()
    return [name for name, d in differences if not d["passed"]]


def write_json(results, path):
    """Writes the results."""
    path.write_text(json.dumps(results, indent=2) + "\n")


def print_table(results, console):
    """Prints the one table."""
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
    table.add_row("wall time, all", f"{results['seconds']:.0f} s", "")
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
        row("parameters in all", total, "{:,}".format),
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
