"""`keras-moe bench`: time calls of a model or an artifact."""

import pathlib
import statistics
from collections.abc import Iterator

from keras_moe_cli.input_batches import draw, knows_indices, shapes_for_tokens
from keras_moe_cli.result_tables import (
    Part,
    Result,
    columns,
    note_on_indices,
    shapes_text,
)
from keras_moe_cli.runnable import Runnable, open_runnable
from keras_moe_cli.timing import time_alone


def bench(
    path: pathlib.Path, tokens: list[int], threads: int | None = None
) -> Result:
    """Time calls on drawn inputs.

    Args:
        path: A `.keras` file or an artifact's folder.
        tokens: Numbers of tokens per call. Each of them is timed.
        threads: Number of threads of an artifact's runtime. `None` (the
            default) leaves the choice to the runtime.

    Returns:
        Dict of `path`, `format`, `threads`, `indices_known`, and `calls`. An
        entry of `calls` has `tokens` (as near to the requested number as the
        shapes of the inputs allow), `shapes`, `median_ms`,
        `tokens_per_second`, and `rounds`.
    """
    runnable = open_runnable(path, threads)
    return {
        "path": runnable.path,
        "format": runnable.format,
        "threads": threads,
        "indices_known": knows_indices(runnable),
        "calls": [_call(runnable, n) for n in tokens],
    }


def tables(result: Result) -> Iterator[Part]:
    """Yield a row for each number of tokens."""
    yield f"{result['path']} ({result['format']})"
    table = columns("tokens", "inputs", "median ms", "tokens/s", "calls")
    for call in result["calls"]:
        table.add_row(
            f"{call['tokens']:,}",
            shapes_text(call["shapes"]),
            f"{call['median_ms']:.3f}",
            f"{call['tokens_per_second']:,.0f}",
            str(call["rounds"]),
        )
    yield table
    yield from note_on_indices(result, "Few experts may have been used.")


def _call(runnable: Runnable, tokens: int) -> Result:
    shapes, real = shapes_for_tokens(runnable.inputs, tokens)
    batch = draw(runnable, shapes)
    times = time_alone(lambda: runnable.run(batch))
    median = statistics.median(times)
    return {
        "tokens": real,
        "shapes": [list(shape) for shape in shapes],
        "median_ms": 1e3 * median,
        "tokens_per_second": real / median,
        "rounds": len(times),
    }
