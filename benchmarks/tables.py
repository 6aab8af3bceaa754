"""Markdown tables of the results; the targets stand in `TARGETS`, `CLAIMS`.

A result is what `run.py` writes: backend, machine, records. A ratio is a list:
median, lower and upper quartile.
"""

# Time over `limit` (D: over `limitE`) that is aimed at: forward, f+b.
TARGETS = {
    "torch": {"S": (1.4, 1.2), "M": (1.0, 1.1), "L": (1.1, 1.25)},
    "tensorflow": {"S": (1.5, 1.4), "M": (1.2, 1.3), "L": (1.2, 1.35)},
    "jax": {"S": (1.45, 1.55), "M": (0.95, 1.25), "L": (1.05, 1.5)},
}
TARGETS["torch"] |= {"D1": (1.05,), "D8": (1.1,)}
TARGETS["tensorflow"] |= {"D1": (1.05,), "D8": (1.05,)}
TARGETS["jax"] |= {"D1": (1.4,), "D8": (1.8,)}
KINDS = ("forward", "f+b", "train")
OURS, HUB = "keras_moe", "KerasHub Qwen3-MoE"
COMPILED = f"{OURS}, jit_compile=True"
GROUPED = "transformers Qwen3-MoE, grouped_mm"


def find(result, **wanted):
    """Returns the records whose fields have these values."""
    return [
        r
        for r in result["records"]
        if all(r.get(field) == value for field, value in wanted.items())
    ]


def block(result, name, shape, kind, dtype="float32"):
    """Returns the record of a contestant that was timed, or None."""
    found = find(
        result, part="blocks", name=name, shape=shape, kind=kind, dtype=dtype
    )
    return next((r for r in found if r["status"] == "ok"), None)


def base_of(shape):
    """The limit a shape is compared with."""
    return "to_limitE" if str(shape).startswith("D") else "to_limit"


def spread(ratio):
    """Writes a median with its quartiles."""
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def markdown(head, rows):
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, x)) + " |" for x in lines)


def main_table(results):
    """keras_moe at every shape, beside what is aimed at."""
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
    """Every contestant: time over `limit` (D: `limitE`), or what is wrong."""
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


def _cell(records, base):
    if not records:
        return ""
    if records[0]["status"] != "ok":
        return records[0]["status"].replace("|", "/")
    return f"{records[0][base][0]:.2f}"


# --- claims -----------------------------------------------------------------


def _faster(peer, shape, kind):
    def measured(result):
        record = block(result, peer, shape, kind)
        return _to_ours(record) if record else None

    return measured


def _to_ours(record):
    """The median of the rounds' ratios over keras_moe; None without it."""
    return record.get("to_keras_moe", [None])[0]


def growth(kind):
    """Returns a function: the largest time over limitE, over that at E = 8."""

    def measured(result):
        found = find(result, part="experts", name=OURS, kind=kind, status="ok")
        values = {r["E"]: r["to_limitE"][0] for r in found}
        return max(values.values()) / values[8] if 8 in values else None

    return measured


def _skewed(kind):
    def measured(result):
        found = find(result, part="skewed", name=f"{OURS}, skewed", kind=kind)
        costs = [cost for r in found if (cost := _to_ours(r)) is not None]
        return max(costs, default=None)

    return measured


def _memory(shape):
    def measured(result):
        found = find(result, part="memory", name=OURS, shape=shape, status="ok")
        return found[0]["to_bound"] if found else None

    return measured


def _fit(result):
    found = find(result, part="end_to_end", name=OURS, kind="fit")
    return 1 / found[0]["to_dense"][0] if found else None


def _first_step(result):
    found = find(result, part="first_step", name="moe", status="ok")
    return found[0]["to_dense"][0] if found else None


# What is claimed, the aim for each backend or all, and the measurement.
CLAIMS = [
    (f"KerasHub's time over ours, {s} {k}", f">= {aim}", _faster(HUB, s, k))
    for s, aim in (("S", 3.0), ("L", 6.0))
    for k in KINDS
]
CLAIMS.append(
    (
        "KerasHub's time over ours, D1 forward",
        {"jax": ">= 25", "tensorflow": ">= 40", "torch": ">= 40"},
        _faster(HUB, "D1", "forward"),
    )
)
CLAIMS += [
    (
        f"transformers grouped_mm's time over ours, {s} {k}",
        ">= 1.0",
        _faster(GROUPED, s, k),
    )
    for s in ("S", "M", "L", "D1", "D8")
    for k in (KINDS if s[0] != "D" else KINDS[:1])
]
CLAIMS += [
    (
        f"jit_compile=True over without, {s} {k}",
        "<= 1.0",
        _faster(COMPILED, s, k),
    )
    for s in ("S", "L")
    for k in ("forward", "f+b")
]
CLAIMS += [
    ("growth over limitE, E 8 to 128, forward", "<= 1.25", growth("forward")),
    ("growth over limitE, E 8 to 128, train", "<= 1.5", growth("train")),
    ("skewed over balanced, forward", "<= 1.2", _skewed("forward")),
    ("skewed over balanced, train", "<= 1.2", _skewed("train")),
    ("peak memory over its bound, M", "<= 1.3", _memory("M")),
    ("peak memory over its bound, L", "<= 1.3", _memory("L")),
    ("model.fit, tokens/s over the dense twin's", ">= 0.8", _fit),
    (
        "first step less a later, 24 blocks of 128, over dense",
        "<= 2.5",
        _first_step,
    ),
]


def claims_table(results):
    """Each claim, its aim, and what each backend measured."""
    rows = []
    for text, aims, measured in CLAIMS:
        values, aim_text = [], aims if isinstance(aims, str) else "see cells"
        for result in results:
            value = measured(result)
            own = aims if isinstance(aims, str) else aims[result["backend"]]
            values.append("-" if value is None else _judged(value, own))
        rows.append([text, aim_text, *values])
    return markdown(["", "aim", *(r["backend"] for r in results)], rows)


def _judged(value, aim):
    sign, number = aim.split()
    met = value >= float(number) if sign == ">=" else value <= float(number)
    return f"{value:.2f}" + ("" if met else f" (missed: {aim})")


def environment(results):
    """One line a backend: machine, versions, commit, date."""
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
