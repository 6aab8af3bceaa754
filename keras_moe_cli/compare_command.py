"""`keras-moe compare`: outputs and speed of two models or artifacts."""

import math
import pathlib

import numpy as np

from keras_moe.cli.errors import CliError
from keras_moe.cli.files import read_data
from keras_moe.cli.inputs import batches_for, for_timing, knows_indices
from keras_moe.cli.runnable import Batch, Runnable, open_runnable
from keras_moe.cli.timing import time_by_turns
from keras_moe.export.verifying import difference


def compare(
    a: pathlib.Path,
    b: pathlib.Path,
    data: pathlib.Path | None = None,
    tolerance: float | None = None,
) -> dict:
    """Runs two things on the same inputs.

    Args:
        a, b: `.keras` files or artifacts.
        data: a `.npz` file of inputs; None draws them.
        tolerance: the largest difference, in units of `a`'s largest output or
            of one where all are smaller; None takes the looser of the two.

    Returns:
        `a`, `b` (`path`, `format`), `shapes` of the batches, `outputs` (of
        each its `shape`, `largest_difference`, `relative_difference`,
        `agrees`; a difference is None where a number is not finite),
        `tolerance`, `agrees`, `indices_known` and `speed`.

    Raises:
        CliError: where inputs or outputs are not of the same form.
    """
    first, second = open_runnable(a), open_runnable(b)
    _check_same("inputs", first, second)
    _check_same("outputs", first, second)
    batches = batches_for(first, second, read_data(data))
    if tolerance is None:
        tolerance = max(first.tolerance, second.tolerance)
    outputs = _differences(first, second, batches, tolerance)
    batch = for_timing(batches)
    speed = time_by_turns(
        lambda: first.run(batch), lambda: second.run(_for(second, batch))
    )
    return {
        "a": {"path": first.path, "format": first.format},
        "b": {"path": second.path, "format": second.format},
        "shapes": [[list(x.shape) for x in batch] for batch in batches],
        "outputs": outputs,
        "tolerance": tolerance,
        "agrees": all(output["agrees"] for output in outputs),
        "indices_known": data is not None
        or first.model is not None
        or second.model is not None
        or knows_indices(first),
        "speed": {"shapes": [list(x.shape) for x in batch], **speed},
    }


def _for(runnable: Runnable, batch: Batch) -> Batch:
    """The batch in the dtypes of one that was not asked for them."""
    return [
        x if spec["dtype"] == "string" else x.astype(spec["dtype"])
        for x, spec in zip(batch, runnable.inputs, strict=True)
    ]


def _check_same(what, first, second):
    """As many inputs, or outputs, of shapes that can be the same."""
    shapes = [
        [spec["shape"] for spec in getattr(runnable, what)]
        for runnable in (first, second)
    ]
    if len(shapes[0]) != len(shapes[1]) or not all(map(_can_be_same, *shapes)):
        raise CliError(
            f"A and B must have {what} of the same number and shapes. "
            f"Received: {shapes[0]} in {first.path}, {shapes[1]} in "
            f"{second.path}, None of any length. Compare two forms of one "
            "model."
        )


def _can_be_same(mine, other):
    return len(mine) == len(other) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(mine, other, strict=True)
    )


def _differences(first, second, batches, tolerance):
    """Of each output the largest over the batches."""
    pairs = [
        (first.run(batch), second.run(_for(second, batch))) for batch in batches
    ]
    found = []
    for i, spec in enumerate(first.outputs):
        both = [(mine[i], other[i]) for mine, other in pairs]
        absolute, relative = np.max(
            [_difference(*pair, i, first, second) for pair in both], axis=0
        )
        found.append(
            {
                "shape": spec["shape"],
                "largest_difference": _finite(absolute),
                "relative_difference": _finite(relative),
                "agrees": bool(relative <= tolerance),
            }
        )
    return found


def _difference(mine, other, i, first, second):
    """The largest difference, and in units of the largest output or of 1."""
    mine, other = np.asarray(mine), np.asarray(other)
    if mine.shape != other.shape:
        raise CliError(
            f"Output {i} of A and B must be of the same shape. Received: "
            f"{list(mine.shape)} from {first.path}, {list(other.shape)} from "
            f"{second.path}. Compare two forms of one model."
        )
    return difference(mine, other)


def _finite(number):
    return float(number) if math.isfinite(number) else None
