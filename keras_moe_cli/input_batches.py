"""Make the batches that models run on: drawn at random or from a file."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_moe.export.artifact import named_inputs
from keras_moe.export.probes import (
    LENGTHS,
    SIZES,
    probes_of,
    random_input,
    shape_of,
)
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.runnable import Batch, Runnable, Spec

ROWS = 64  # rows of `--data` per batch
TIMED_ROWS = 32
MAX_DRAWN = 2**27  # elements per input, 1 GB while they are drawn
Shape = tuple[int, ...]


def batches_for(first: Runnable, second: Runnable, data: Any) -> list[Batch]:
    """Return the batches to compare two models or artifacts on.

    With `data`, the batches are all of its rows, 64 per batch. Without it,
    they are drawn. If one of the two is a Keras model, the batches together
    reach each of its experts. For two artifacts, they have two of the shapes
    that an artifact was verified on.

    Args:
        first: A model or artifact.
        second: The other one.
        data: Arrays by name, a list of arrays, or `None`.
    """
    model = first.model or second.model
    if data is not None:
        return _rows_of(data, first)
    if model is not None:
        return [probe.batch for probe in probes_of(model)]
    return _drawn_for(first, second)


def batch_for_timing(batches: list[Batch]) -> Batch:
    """Return the largest batch, with its rows repeated to 32.

    The rows are unchanged if all batches have the same number of them.
    """
    batch = max(batches, key=lambda batch: max(x[0].size for x in batch))
    if len({len(b[0]) for b in batches}) == 1:
        return batch
    return [np.resize(x, (TIMED_ROWS, *x.shape[1:])) for x in batch]


def _rows_of(data: Any, runnable: Runnable) -> list[Batch]:
    arrays = list(named_inputs(data, runnable.inputs).values())
    for array, spec in zip(arrays, runnable.inputs, strict=True):
        rows, *shape = spec["shape"]
        fits = array.ndim == 1 + len(shape) and all(
            n in (None, m) for n, m in zip(shape, array.shape[1:], strict=True)
        )
        if not fits or rows not in (None, len(array)):
            raise CliError(
                f"`--data` must have {spec['name']!r} of shape "
                f"{spec['shape']}; None is any length. Received: "
                f"{list(array.shape)}. Write it in that shape."
            )
    starts = range(0, len(arrays[0]), ROWS)
    return [[array[i : i + ROWS] for array in arrays] for i in starts]


def _drawn_for(first: Runnable, second: Runnable) -> list[Batch]:
    """Draw two batches of verified shapes, or of the first shapes that work."""
    known = first.shapes or second.shapes
    if known:
        return [draw(first, shapes) for shapes in known[:2]]
    for lengths in LENGTHS:
        batches = [
            draw(first, shapes_of(first.inputs, size, length))
            for size, length in zip(SIZES, lengths, strict=True)
        ]
        try:
            for batch in batches:
                first.run(batch)
            return batches
        except Exception as error:  # noqa: BLE001  any runtime's own
            failure = str(error).split("\n")[0]
    raise CliError(
        f"{first.path} must accept inputs of one of the lengths that are "
        f"tried. Received: an error at each of {LENGTHS}: {failure}. Pass "
        "--data."
    )


def shapes_of(inputs: list[Spec], size: int, length: int) -> list[Shape]:
    """Return each input's shape for a batch size and a length."""
    return [shape_of(spec, size, length) for spec in inputs]


def draw(
    runnable: Runnable, shapes: Iterable[Sequence[int]], seed: int = 0
) -> Batch:
    """Draw a batch of normal numbers, valid indices, or words.

    Args:
        runnable: The model or artifact that the batch is for.
        shapes: The shape of each input.
        seed: Seed of the random numbers. Default: 0.

    Raises:
        CliError: If an input would have more than `MAX_DRAWN` elements.
    """
    for shape in shapes:
        if math.prod(shape) > MAX_DRAWN:
            raise CliError(
                f"Inputs that are drawn must have at most {MAX_DRAWN:,} "
                f"elements. Received: {list(shape)} for {runnable.path}. Pass "
                "fewer --tokens to bench, or --data to compare."
            )
    rng = np.random.default_rng(seed)
    return [
        random_input(rng, tuple(shape), spec)
        for shape, spec in zip(shapes, runnable.inputs, strict=True)
    ]


def knows_indices(runnable: Runnable) -> bool:
    """Return whether each integer input has a known upper bound."""
    return all(
        "below" in spec for spec in runnable.inputs if "int" in spec["dtype"]
    )


def shapes_for_tokens(
    inputs: list[Spec], tokens: int
) -> tuple[list[Shape], int]:
    """Return the inputs' shapes for about `tokens` tokens, and their number.

    A token is a position of the first input. The positions are all axes except
    the batch axis and, for floats, the last axis. Axes of unknown length are
    made as long as needed. If there are none, the batch is made as large as
    needed.
    """
    spec = inputs[0]
    size, *rest = spec["shape"]
    is_float = "float" in spec["dtype"]
    positions = rest[:-1] if is_float else rest
    free = positions.count(None)
    fixed = math.prod(n for n in positions if n is not None)
    length = 1
    if free:
        size = size or 1
        length = math.ceil((tokens / (fixed * size)) ** (1 / free) - 1e-9)
        length = max(1, length)
    size = size or math.ceil(tokens / fixed)
    real = size * fixed * length**free
    return shapes_of(inputs, size, length), real
