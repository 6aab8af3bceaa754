"""Compare the page's tables of optimizers and layouts with training.

Each row is trained in each layout and in one process. With WRITE_TABLE=1, the
slow test writes the active backend's table into the page.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import optimizer_layouts
import pytest
from backend import BACKEND
from paths import ROOT, SUPPORT
from two_processes import run_two_processes, split

PAGE = ROOT / "docs" / "optimizers-and-layouts.md"
MARK, END = f"<!-- {BACKEND} -->", f"<!-- /{BACKEND} -->"
# Rows that once crashed or trained wrongly without an error, and one layout.
SOME = {
    "jax": (["`Adafactor`"], "expert=2, model=2"),
    "tensorflow": (["`Lion`", "`clipnorm`"], "MirroredStrategy"),
    "torch": (
        ["`Ftrl`", "`Lamb`", "`ema_overwrite_frequency`"],
        "shard_experts, fully_sharded",
    ),
}


def train_in_layouts(folder, rows, layouts):
    """Return each process's weights or errors, by row and layout."""
    script = f"optimizer_layouts_{BACKEND}.py"
    arguments = [json.dumps(rows), json.dumps(layouts)]
    if BACKEND == "torch":
        return run_two_processes(folder, *arguments, script=script)
    script = SUPPORT / script
    command = [sys.executable, script, folder, *arguments]
    subprocess.run(command, check=True, timeout=1800)
    return [split(np.load(folder / "0.npz"))]


def cell(row, layout, values, alone):
    """Return the table's cell of a row in a layout; fail on other results."""
    if all(value.dtype.kind == "U" for value in values):
        for message in map(str, values):
            assert re.match("ValueError: `.*Received: ", message), message
        return "refused"
    for value in values:
        assert value.dtype.kind == "f", f"{row}, {layout}: {value}"
        np.testing.assert_allclose(
            value, alone, rtol=0, atol=5e-6, err_msg=f"{row}, {layout}"
        )
    return "equal"


def found_cells(folder, rows, layouts=()):
    """Return the table's cells by row and layout; `()` stands for all."""
    every = train_in_layouts(folder, rows, layouts)
    found = {}
    for row in rows:
        model = optimizer_layouts.make_model(row)
        before = optimizer_layouts.weights_of(model)
        optimizer_layouts.train(model)
        alone = optimizer_layouts.weights_of(model)
        assert np.max(np.abs(alone - before)) > 1e-3, row
        found[row] = {
            name: cell(row, name, [each[row][name] for each in every], alone)
            for name in every[0][row]
        }
    return found


def as_table(found):
    """Return the lines of a table."""
    layouts = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(f"`{name}`" for name in layouts) + " |"]
    lines.append("|---" * (len(layouts) + 1) + "|")
    for row, cells in found.items():
        lines.append(f"| {row} | " + " | ".join(cells.values()) + " |")
    return lines


def test_some_cells_of_the_table(tmp_path):
    text = PAGE.read_text().split(MARK)[1].split(END)[0]
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.strip().splitlines()
    ]
    page = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    rows, layout = SOME[BACKEND]
    found = found_cells(tmp_path, rows, [layout])
    for row in rows:
        assert found[row] == {layout: page[row][f"`{layout}`"]}


@pytest.mark.slow
def test_the_table_agrees_with_training(tmp_path):
    lines = as_table(found_cells(tmp_path, list(optimizer_layouts.ROWS)))
    text = "\n".join(["", *lines, ""])
    before, rest = PAGE.read_text().split(MARK)
    present, after = rest.split(END)
    if os.environ.get("WRITE_TABLE"):
        PAGE.write_text(before + MARK + text + END + after)
        return
    assert present == text
