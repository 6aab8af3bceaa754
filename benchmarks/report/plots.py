"""Draw PNG plots of the time over E, over T, and of every contestant."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.report import tables

SWEEPS = {
    "experts": ("E", "experts, at the same active FLOPs", "to_limitE"),
    "tokens": ("T", "tokens", "to_limit"),
}


def draw_all(results, folder):
    """Write every plot that has records; return the paths."""
    paths = []
    for part, (field, label, base) in SWEEPS.items():
        figure = _sweep(results, part, field, label, base)
        paths += _save(figure, folder / f"{part}.png")
    for shape in ("S", "L", "D1"):
        figure = _peers(results, shape)
        paths += _save(figure, folder / f"peers_{shape}.png")
    return paths


def _save(figure, path):
    if figure is None:
        return []
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return [path]


def _sweep(results, part, field, label, base):
    figure, axes = plt.subplots(figsize=(6, 4))
    for i, result in enumerate(results):
        for kind, style in (("forward", "-"), ("train", "--"), ("f+b", ":")):
            found = tables.find(
                result, part=part, name=tables.OURS, kind=kind, status="ok"
            )
            if not found:
                continue
            sizes = [r[field] for r in found]
            median, low, high = zip(*(r[base] for r in found), strict=True)
            name = f"{result['backend']}, {kind}"
            axes.plot(
                sizes, median, style, marker=".", color=f"C{i}", label=name
            )
            axes.fill_between(sizes, low, high, alpha=0.15, color=f"C{i}")
    if not axes.lines:
        plt.close(figure)
        return None
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel=label, ylim=(0, None))
    axes.set_ylabel(f"keras_moe's time over {base.removeprefix('to_')}")
    axes.legend(fontsize=7)
    return figure


def _peers(results, shape):
    """Draw the forward pass in log-scale bars, one panel per backend."""
    base = tables.base_of(shape)
    panels = []
    for result in results:
        found = tables.find(
            result, part="blocks", shape=shape, kind="forward", dtype="float32"
        )
        found = [r for r in found if r["status"] == "ok" and base in r]
        if found:
            panels.append((result["backend"], found))
    if not panels:
        return None
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 4), squeeze=False
    )
    for axis, (backend, found) in zip(axes[0], panels, strict=True):
        found = sorted(found, key=lambda r: -r[base][0])
        values = [r[base][0] for r in found]
        ours = [r["name"].startswith(tables.OURS) for r in found]
        axis.barh(
            [r["name"] for r in found],
            values,
            color=["C0" if own else "0.7" for own in ours],
        )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(xscale="log", title=f"{backend}, {shape}, forward")
        axis.set_xlabel(f"time over {base.removeprefix('to_')}")
    figure.tight_layout()
    return figure
