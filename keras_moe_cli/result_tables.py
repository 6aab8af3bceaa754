"""Print a command's result on stdout, as JSON or as tables."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

from keras_moe_cli.printable import printable

Result = dict[str, Any]
Part = RenderableType
UNITS = "B", "kB", "MB", "GB", "TB"


def show(
    result: Result, as_json: bool, tables: Callable[[Result], Iterable[Part]]
) -> None:
    """Print a result as JSON or as tables.

    Text is never interpreted as markup of Rich or as the name of an emoji.

    Args:
        result: Result of a command.
        as_json: Whether to print JSON.
        tables: Function that yields the tables and lines of a result.
    """
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    console = Console(
        file=sys.stdout, highlight=False, markup=False, emoji=False
    )
    for part in tables(printable(result)):
        console.print(part)


def facts(*rows: tuple[str, object]) -> Table:
    """Return a table of names and values without a header."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, str(value))
    return table


def columns(first: str, *names: str) -> Table:
    """Return an empty table whose first column may be wrapped."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", min_width=8)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def size(count: int) -> str:
    """Return a number of bytes with its unit: `17.2 kB`."""
    power = min((len(str(count)) - 1) // 3, len(UNITS) - 1)
    if power == 0:
        return f"{count} B"
    return f"{count / 1000**power:.3g} {UNITS[power]}"


def shape_text(shape: Iterable[int | None]) -> str:
    """Return a shape as text: `(any, 8)`."""
    return f"({', '.join('any' if n is None else str(n) for n in shape)})"


def shapes_text(shapes: Iterable[Iterable[int | None]]) -> str:
    """Return several shapes as text."""
    return ", ".join(map(shape_text, shapes))


def verified_text(verified: Result | None) -> str:
    """Return a manifest's entry `verified` as text."""
    if not verified:
        return "no"
    unreached = sum(map(len, verified["unreached"].values()))
    note = f"; {unreached} experts were not reached" if unreached else ""
    return (
        f"yes, on {len(verified['shapes'])} batches: largest difference "
        f"{verified['largest_difference']:.1e}, tolerance "
        f"{verified['tolerance']:g}{note}"
    )


def note_on_indices(result: Result, remedy: str) -> Iterator[Part]:
    """Yield a note if the drawn indices may not be typical."""
    if not result["indices_known"]:
        yield (
            "The artifact has no upper bound of its integers, so 0 and 1 were "
            f"drawn. {remedy}"
        )
