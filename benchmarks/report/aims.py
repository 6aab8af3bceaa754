"""List the aims of speed and memory, and compare the results with them.

An aim is a tuple of a text, a bound (`">= 3.0"`, or one per backend), and a
function from a result to a number, or to None if it was not measured.
"""

from benchmarks.report.tables import KINDS, OURS, block, find, markdown

HUB = "KerasHub Qwen3-MoE"
COMPILED = f"{OURS}, jit_compile=True"
GROUPED = "transformers Qwen3-MoE, grouped_mm"


def _faster(peer, shape, kind):
    def measured(result):
        record = block(result, peer, shape, kind)
        return _to_ours(record) if record else None

    return measured


def _to_ours(record):
    """Return the ratio to keras_moe in the same rounds, or None."""
    return record.get("to_keras_moe", [None])[0]


def growth(kind):
    """Return a function that measures how `to_limitE` grows from E = 8."""

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


def _routers(sinkhorn):
    """Return a function that measures the largest share of any router."""

    def measured(result):
        found = find(result, part="routers", status="ok")
        found = [r for r in found if ("Sinkhorn" in r["name"]) is sinkhorn]
        return max((r["to_block"][0] for r in found), default=None)

    return measured


def _fit(optimizer):
    def measured(result):
        found = find(
            result, part="end_to_end", name=OURS, kind="fit", status="ok"
        )
        found = [r for r in found if r["optimizer"] == optimizer]
        return 1 / found[0]["to_dense"][0] if found else None

    return measured


def _first_step(result):
    found = find(result, part="first_step", name="moe", status="ok")
    return found[0]["to_dense"][0] if found else None


# The module's docstring describes the entries.
AIMS = [
    (f"KerasHub's time over ours, {s} {k}", f">= {aim}", _faster(HUB, s, k))
    for s, aim in (("S", 3.0), ("L", 6.0))
    for k in KINDS
]
AIMS.append(
    (
        "KerasHub's time over ours, D1 forward",
        {"jax": ">= 25", "tensorflow": ">= 40", "torch": ">= 40"},
        _faster(HUB, "D1", "forward"),
    )
)
AIMS += [
    (
        f"transformers grouped_mm's time over ours, {s} {k}",
        ">= 1.0",
        _faster(GROUPED, s, k),
    )
    for s in ("S", "M", "L", "D1", "D8")
    for k in (KINDS if s[0] != "D" else KINDS[:1])
]
AIMS += [
    (
        f"jit_compile=True over without, {s} {k}",
        "<= 1.0",
        _faster(COMPILED, s, k),
    )
    for s in ("S", "L", "D1")
    for k in (KINDS[:2] if s[0] != "D" else KINDS[:1])
]
AIMS += [
    ("growth over limitE, E 8 to 128, forward", "<= 1.25", growth("forward")),
    ("growth over limitE, E 8 to 128, train", "<= 1.5", growth("train")),
    ("skewed over balanced, forward", "<= 1.2", _skewed("forward")),
    ("skewed over balanced, train", "<= 1.2", _skewed("train")),
    ("peak memory over its bound, M", "<= 1.3", _memory("M")),
    ("peak memory over its bound, L", "<= 1.3", _memory("L")),
    (
        "most expensive router, of the block's forward, M",
        "<= 0.15",
        _routers(False),
    ),
    ("SinkhornRouter, the same", "<= 0.3", _routers(True)),
    (
        "model.fit with FusedAdam, tokens/s over the dense twin's",
        ">= 0.8",
        _fit("FusedAdam"),
    ),
    ("the same with Keras's Adam on torch", ">= 0.8", _fit("Adam")),
    (
        "first step minus a later one, over the dense twin's",
        "<= 2.5",
        _first_step,
    ),
]


def aims_table(results):
    """Return the table of each aim and the value on each backend."""
    rows = []
    for text, aims, measured in AIMS:
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
