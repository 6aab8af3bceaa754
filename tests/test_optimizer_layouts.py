"""The page's table of optimizers, options, and layouts is what training gives.

Each row is trained in each layout and on one process. With WRITE_TABLE=1 the
slow test writes the running backend's table into the page.
"""

import os
import pathlib
import re

import numpy as np
import optimizer_layouts
import pytest
from backend import BACKEND
from test_distribution_torch import run_two_processes

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="the page has no table for another backend"
)

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "optimizers-and-layouts.md"


def train_in_layouts(folder, rows):
    """What each process found: of each row, weights or an error by layout."""
    script = "optimizer_layouts_torch.py"
    return run_two_processes(folder, *rows, script=script)


def cell(row, layout, values, alone):
    """What the table says of a row in a layout; anything else fails."""
    if all(value.dtype.kind == "U" for value in values):
        for message in map(str, values):
            assert re.match("ValueError: `.*Received: ", message), message
        return "refused"
    for value in values:
        np.testing.assert_allclose(
            value, alone, rtol=0, atol=5e-6, err_msg=f"{row}, {layout}"
        )
    return "equal"


def table_of(folder, rows):
    """The rows of the table, and the one above them."""
    every = train_in_layouts(folder, rows)
    layouts = list(every[0][rows[0]])
    lines = ["| | " + " | ".join(f"`{name}`" for name in layouts) + " |"]
    lines.append("|---" * (len(layouts) + 1) + "|")
    for row in rows:
        model = optimizer_layouts.make_model(row)
        before = optimizer_layouts.weights_of(model)
        optimizer_layouts.train(model)
        alone = optimizer_layouts.weights_of(model)
        assert np.max(np.abs(alone - before)) > 1e-3, row
        cells = [
            cell(row, name, [found[row][name] for found in every], alone)
            for name in layouts
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return lines


@pytest.mark.parametrize("row", ["`Ftrl`", "`Lamb`", "`use_ema`"])
def test_some_rows_of_the_table(row, tmp_path):
    """Of those that crashed or trained wrongly without an error."""
    page = PAGE.read_text().split(f"<!-- {BACKEND} -->")[1].splitlines()
    for line in table_of(tmp_path, [row]):
        assert line in page


@pytest.mark.slow
def test_the_table_is_what_training_gives(tmp_path):
    lines = table_of(tmp_path, list(optimizer_layouts.ROWS))
    text = "\n".join(["", *lines, ""])
    mark, end = f"<!-- {BACKEND} -->", f"<!-- /{BACKEND} -->"
    before, rest = PAGE.read_text().split(mark)
    present, after = rest.split(end)
    if os.environ.get("WRITE_TABLE"):
        PAGE.write_text(before + mark + text + end + after)
        return
    assert present == text
