"""Make Markdown tables of the results, with the targets in `TARGETS`.

A result is a dict that `run_suite.py` writes, with the backend, the machine,
and the records. A ratio is a list of the median, the lower quartile, and the
upper quartile.
"""

# Targets of the time over `limit` (over `limitE` for D1 and D8): forward, f+b.
TARGETS = {
    "torch": {"S": (1.4, 1.2), "M": (1.0, 1.1), "L": (1.1, 1.25)},
    "tensorflow": {"S": (1.5, 1.4), "M": (1.2, 1.3), "L": (1.2, 1.35)},
    "jax": {"S": (1.45, 1.55), "M": (0.95, 1.25), "L": (1.05, 1.5)},
}
TARGETS["torch"] |= {"D1": (1.05,), "D8": (1.1,)}
TARGETS["tensorflow"] |= {"D1": (1.05,), "D8": (1.05,)}
TARGETS["jax"] |= {"D1": (1.4,), "D8": (1.8,)}
KINDS = ("forward", "f+b", "train")
OURS = "keras_moe"


def find(result, **wanted):
    """Return the records whose fields have these values."""
    return [
        r
        for r in result["records"]
        if all(r.get(field) == value for field, value in wanted.items())
    ]


def block(result, name, shape, kind, dtype="float32"):
    """Return the record of a contestant that was timed, or None."""
    found = find(
        result, part="blocks", name=name, shape=shape, kind=kind, dtype=dtype
    )
    return next((r for r in found if r["status"] == "ok"), None)


def base_of(shape):
    """Return the field of the limit that a shape is compared with."""
    return "to_limitE" if str(shape).startswith("D") else "to_limit"


def spread(ratio):
    """Return a median with its quartiles, as text."""
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def markdown(head, rows):
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, x)) + " |" for x in lines)


def main_table(results):
    """Return the table of keras_moe's times and targets at every shape."""
    rows = []
    for result in results:
        for shape, targets in TARGETS[result["backend"]].items():
            cells = []
            for i, kind in enumerate(KINDS):
                record = block(result, OURS, shape, kind)
                text = spread(record[base_of(shape)]) if record else "-"
                aim = (*targets, None, None)[i] if kind != "train" else None
                if shape[0] != "D" and kind == "train":
                    aim = targets[1]
                cells.append(text + (f"; {aim:.2f}" if aim else ""))
            if set(cells[:1]) != {"-"} and any("(" in c for c in cells):
                rows.append([result["backend"], shape, *cells])
    head = ["backend", "shape", *(f"{k}; aim" for k in KINDS)]
    return markdown(head, rows)


def all_table(result, dtype):
    """Return the table of each contestant's time over the limit, or error."""
    records = find(result, part="blocks", dtype=dtype)
    columns = list(dict.fromkeys((r["shape"], r["kind"]) for r in records))
    columns.sort(key=lambda c: ("SMLD".index(c[0][0]), c[0], KINDS.index(c[1])))
    names = list(dict.fromkeys(r["name"] for r in records))
    names.sort(key=lambda n: (not n.startswith("limit"), OURS not in n))
    rows = []
    for name in names:
        row = [name]
        for shape, kind in columns:
            own = [r for r in records if r["name"] == name]
            own = [r for r in own if (r["shape"], r["kind"]) == (shape, kind)]
            row.append(_cell(own, base_of(shape)))
        rows.append(row)
    head = [result["backend"], *(f"{shape} {kind}" for shape, kind in columns)]
    return markdown(head, rows)


def routers_table(results):
    """Return the table of each router's share of a block's forward pass."""
    columns = [
        (result, kind)
        for result in results
        if find(result, part="routers")
        for kind in ("evaluation", "training")
    ]
    records = [r for result, _ in columns for r in find(result, part="routers")]
    rows = []
    for name in dict.fromkeys(r["name"] for r in records):
        row = [name]
        for result, kind in columns:
            found = find(result, part="routers", name=name, kind=kind)
            row.append(f"{found[0]['to_block'][0]:.3f}" if found else "")
        rows.append(row)
    head = ["", *(f"{result['backend']} {kind}" for result, kind in columns)]
    return markdown(head, rows)


def _cell(records, base):
    if not records:
        return ""
    if records[0]["status"] != "ok":
        return records[0]["status"].replace("|", "/")
    return f"{records[0][base][0]:.2f}"


def environment(results):
    """Return one line per backend: machine, versions, commit, date."""
    lines = []
    for result in results:
        m = result["machine"]
        versions = ", ".join(f"{p} {v}" for p, v in m["versions"].items())
        clock = "one core, CPU time" if result["pinned"] else "wall time"
        quick = ", quick" if result["quick"] else ""
        lines.append(
            f"{result['backend']}: {m['cpu']}, {m['cores']} cores, "
            f"{m['memory_gb']} GB; {clock}{quick}; {versions}; commit "
            f"{m['commit']}; {m['date']}."
        )
    return "\n\n".join(lines)
