"""What the commands found, for eyes or as JSON, on stdout."""

import json
import sys
from collections.abc import Callable, Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from keras_moe.cli.plain import printable

Part = RenderableType
UNITS = "B", "kB", "MB", "GB", "TB"


def show(
    found: dict, as_json: bool, tables: Callable[[dict], Iterable[Part]]
) -> None:
    """Print a result: JSON alone, or what `tables` makes of it.

    No text is read as markup or as the name of an emoji.
    """
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
        return
    console = Console(
        file=sys.stdout, highlight=False, markup=False, emoji=False
    )
    for part in tables(printable(found)):
        console.print(part)


def tell(message: str) -> None:
    """Writes a line to stderr."""
    print(f"keras-moe: {printable(message)}", file=sys.stderr)


def exported(found: dict) -> Iterable[Part]:
    """Where it lies, how large it is, what was seen."""
    yield _facts(
        ("artifact", found["path"]),
        ("format", found["format"]),
        ("quantised", found["quantize"] or "no"),
        ("size", size(found["bytes"])),
        ("verified", _verified(found["verified"])),
    )


def inspected(found: dict) -> Iterable[Part]:
    """The whole, then a row for each mixture."""
    total, active = found["parameters"], found["active_parameters"]
    share = f" ({active / total:.0%})" if total else ""
    yield _facts(
        ("path", found["path"]),
        ("kind", _kind(found)),
        ("inputs", _tensors(found["inputs"])),
        ("outputs", _tensors(found["outputs"])),
        ("parameters", f"{total:,}"),
        ("active per token", f"{active:,}{share}"),
        (
            "memory",
            f"{size(found['parameter_bytes'])}, of experts "
            f"{size(found['expert_bytes'])}",
        ),
        ("size on disk", size(found["bytes"])),
        ("runs in" if "format" in found else "exports to", _formats(found)),
        ("versions", _versions(found["versions"])),
        *_seen(found),
    )
    yield _mixtures(found["mixtures"])


def compared(found: dict) -> Iterable[Part]:
    """A row for each output, then the speed."""
    for name in "ab":
        thing = found[name]
        yield f"{name.upper()}  {thing['path']} ({thing['format']})"
    table = _table("output", "shape", "difference", "relative", "agrees")
    for i, output in enumerate(found["outputs"]):
        table.add_row(
            str(i),
            _shape(output["shape"]),
            _number(output["largest_difference"]),
            _number(output["relative_difference"]),
            "yes" if output["agrees"] else "NO",
        )
    yield table
    speed = found["speed"]
    first, second = speed["median_ms"]
    yield (
        f"Tolerance {found['tolerance']:g}. Median of {speed['rounds']} calls "
        f"on {_shapes(speed['shapes'])}: A {first:.3g} ms, B {second:.3g} ms; "
        f"B takes {speed['ratio']:.2f} of A's time."
    )
    yield from _guess(found, "--data compares on inputs of yours.")


def benched(found: dict) -> Iterable[Part]:
    """A row for each number of tokens."""
    yield f"{found['path']} ({found['format']})"
    table = _table("tokens", "inputs", "median ms", "tokens/s", "calls")
    for call in found["calls"]:
        table.add_row(
            f"{call['tokens']:,}",
            _shapes(call["shapes"]),
            f"{call['median_ms']:.3f}",
            f"{call['tokens_per_second']:,.0f}",
            str(call["rounds"]),
        )
    yield table
    yield from _guess(found, "Few experts may have been asked.")


def size(count: int) -> str:
    """Bytes in words: `17.2 kB`."""
    power = min((len(str(count)) - 1) // 3, len(UNITS) - 1)
    if power == 0:
        return f"{count} B"
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def _guess(found, remedy):
    if not found["indices_known"]:
        yield (
            "The artifact does not say which integers it takes: 0 and 1 were "
            f"drawn. {remedy}"
        )


def _mixtures(mixtures) -> Part:
    if not mixtures:
        return "No mixture of experts inside."
    table = _table(
        "mixture",
        "router",
        "experts",
        "top_k",
        "capacity",
        "training",
        "parameters",
        "memory",
    )
    for m in mixtures:
        table.add_row(
            m["path"],
            m["router"],
            str(m["num_experts"]),
            str(m["top_k"]),
            _capacity(m["eval_capacity_factor"]),
            _capacity(m["capacity_factor"]),
            f"{m['expert_parameters']:,}",
            size(m["expert_bytes"]),
        )
    return table


def _capacity(factor):
    return "dropless" if factor is None else f"{factor:g}"


def _kind(found):
    if found["kind"] == "model":
        return f"Keras model {found['name']!r} ({found['class']})"
    parts = [f"{found['format']} artifact"]
    if found["quantize"]:
        parts.append(found["quantize"])
    # The manifest cannot know who trained a model that came as a file.
    parts.append(f"exported on {found['exported_on']}")
    parts.append(f"written by {found['written_by']}")
    return ", ".join(parts)


def _formats(found):
    return ", ".join(
        f"{name} (needs {', '.join(missing)})" if missing else name
        for name, missing in found["formats"].items()
    )


def _versions(versions):
    return ", ".join(f"{k} {v}" for k, v in versions.items() if v) or "unknown"


def _seen(found):
    """Nothing is to be verified of a model."""
    if found["kind"] == "artifact":
        yield "verified", _verified(found["verified"])


def _verified(verified):
    if not verified:
        return "no"
    unreached = sum(map(len, verified["unreached"].values()))
    note = f"; {unreached} experts were not reached" if unreached else ""
    return (
        f"yes, on {len(verified['shapes'])} batches: largest difference "
        f"{verified['largest_difference']:.1e}, tolerance "
        f"{verified['tolerance']:g}{note}"
    )


def _tensors(specs):
    if specs is None:
        return "not known: the model has no symbolic inputs"
    words = (
        (spec.get("name", ""), _shape(spec["shape"]), spec["dtype"])
        for spec in specs
    )
    return ", ".join(" ".join(filter(None, word)) for word in words)


def _shape(shape):
    return f"({', '.join('any' if n is None else str(n) for n in shape)})"


def _shapes(shapes):
    return ", ".join(map(_shape, shapes))


def _number(number):
    return "not finite" if number is None else f"{number:.1e}"


def _facts(*rows) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def _table(first, *names) -> Table:
    """The first column alone gives way where the line is short."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=8)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table
