"""`keras-moe compare`: compare outputs and speed of two models or artifacts."""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from keras_moe.export.verifying import difference
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.input_batches import (
    batch_for_timing,
    batches_for,
    knows_indices,
)
from keras_moe_cli.path_arguments import read_data
from keras_moe_cli.result_tables import (
    Part,
    Result,
    columns,
    note_on_indices,
    shape_text,
    shapes_text,
)
from keras_moe_cli.runnable import Batch, Runnable, open_runnable
from keras_moe_cli.timing import time_by_turns


def compare(
    a: pathlib.Path,
    b: pathlib.Path,
    data: pathlib.Path | None = None,
    tolerance: float | None = None,
) -> Result:
    """Run two models or artifacts on the same inputs.

    Args:
        a: A `.keras` file or an artifact's folder.
        b: Another form of the same model.
        data: A `.npz` file of inputs. `None` (the default) draws them.
        tolerance: Largest difference, in units of `a`'s largest output, or of
            1 if that is larger. `None` (the default) is the larger tolerance
            of the two.

    Returns:
        Dict of `a` and `b` (`path` and `format`), `shapes` of the batches,
        `outputs`, `tolerance`, `agrees`, `indices_known`, and `speed`. An
        entry of `outputs` has `shape`, `largest_difference`,
        `relative_difference`, and `agrees`. A difference is `None` if it is
        not finite.

    Raises:
        CliError: If the numbers or shapes of inputs or outputs differ.
    """
    first, second = open_runnable(a), open_runnable(b)
    _check_same("inputs", first, second)
    _check_same("outputs", first, second)
    batches = batches_for(first, second, read_data(data))
    if tolerance is None:
        tolerance = max(first.tolerance, second.tolerance)
    outputs = _differences(first, second, batches, tolerance)
    batch = batch_for_timing(batches)
    speed = time_by_turns(
        lambda: first.run(batch), lambda: second.run(_cast(second, batch))
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


def tables(result: Result) -> Iterator[Part]:
    """Yield a row for each output, then the speed."""
    for name in "ab":
        thing = result[name]
        yield f"{name.upper()}  {thing['path']} ({thing['format']})"
    table = columns("output", "shape", "difference", "relative", "agrees")
    for i, output in enumerate(result["outputs"]):
        table.add_row(
            str(i),
            shape_text(output["shape"]),
            _number(output["largest_difference"]),
            _number(output["relative_difference"]),
            "yes" if output["agrees"] else "NO",
        )
    yield table
    speed = result["speed"]
    first, second = speed["median_ms"]
    yield (
        f"Tolerance {result['tolerance']:g}. Median of {speed['rounds']} calls "
        f"on {shapes_text(speed['shapes'])}: A {first:.3g} ms, B {second:.3g} "
        f"ms; B takes {speed['ratio']:.2f} of A's time."
    )
    yield from note_on_indices(result, "--data compares on your own inputs.")


def _cast(runnable: Runnable, batch: Batch) -> Batch:
    """Return a batch in the dtypes of the inputs of `runnable`."""
    return [
        x if spec["dtype"] == "string" else x.astype(spec["dtype"])
        for x, spec in zip(batch, runnable.inputs, strict=True)
    ]


def _check_same(
    what: Literal["inputs", "outputs"], first: Runnable, second: Runnable
) -> None:
    """Raise if the numbers or shapes of inputs or outputs differ."""
    shapes = [
        [spec["shape"] for spec in getattr(runnable, what)]
        for runnable in (first, second)
    ]
    if len(shapes[0]) != len(shapes[1]) or not all(map(_can_be_same, *shapes)):
        raise CliError(
            f"A and B must have {what} of the same number and shapes. "
            f"Received: {shapes[0]} in {first.path}, {shapes[1]} in "
            f"{second.path}; None is any length. Compare two forms of one "
            "model."
        )


def _can_be_same(
    mine: Sequence[int | None], other: Sequence[int | None]
) -> bool:
    return len(mine) == len(other) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(mine, other, strict=True)
    )


def _differences(
    first: Runnable, second: Runnable, batches: list[Batch], tolerance: float
) -> list[Result]:
    """Return each output's largest difference over the batches."""
    pairs = [
        (first.run(batch), second.run(_cast(second, batch)))
        for batch in batches
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


def _difference(
    mine: np.ndarray,
    other: np.ndarray,
    i: int,
    first: Runnable,
    second: Runnable,
) -> tuple[float, float]:
    """Return the largest absolute and relative difference of output `i`."""
    mine, other = np.asarray(mine), np.asarray(other)
    if mine.shape != other.shape:
        raise CliError(
            f"Output {i} of A and B must have the same shape. Received: "
            f"{list(mine.shape)} from {first.path}, {list(other.shape)} from "
            f"{second.path}. Compare two forms of one model."
        )
    return difference(mine, other)


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _number(number: float | None) -> str:
    return "not finite" if number is None else f"{number:.1e}"
