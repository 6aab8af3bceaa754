"""`keras-moe bench`: how long a call of a model or an artifact takes."""

import pathlib
import statistics

from keras_moe.cli.inputs import draw, knows_indices, shapes_for_tokens
from keras_moe.cli.runnable import open_runnable
from keras_moe.cli.timing import time_alone


def bench(
    path: pathlib.Path, tokens: list[int], threads: int | None = None
) -> dict:
    """Times calls on drawn inputs.

    Args:
        path: a `.keras` file or an artifact.
        tokens: how many a call takes, one after the other.
        threads: that an artifact's runtime may use.

    Returns:
        `path`, `format`, `threads`, `indices_known`, and `calls`: of each
        `tokens` (as many as the free axes can make), `shapes`, `median_ms`,
        `tokens_per_second` and `rounds`.
    """
    runnable = open_runnable(path, threads)
    return {
        "path": runnable.path,
        "format": runnable.format,
        "threads": threads,
        "indices_known": knows_indices(runnable),
        "calls": [_call(runnable, n) for n in tokens],
    }


def _call(runnable, tokens):
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
