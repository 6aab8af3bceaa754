"""Batches to run things on: drawn at random or taken from a file."""

import math

import numpy as np

from keras_moe.cli.errors import CliError
from keras_moe.cli.runnable import Batch, Runnable
from keras_moe.export.artifact import named_inputs
from keras_moe.export.probes import (
    LENGTHS,
    SIZES,
    probes_of,
    random_input,
    shape_of,
)

ROWS = 64
MOST_DRAWN = 2**27  # elements of an input, 1 GB while they are drawn


def batches_for(first: Runnable, second: Runnable, data) -> list[Batch]:
    """Returns what to run both on.

    All rows of `data`, 64 at a time; without it what reaches every expert of
    the one that is a Keras model; of two artifacts two batches that the first
    was verified on the shapes of.
    """
    model = first.model or second.model
    if data is not None:
        return _rows_of(data, first)
    if model is not None:
        return [probe.batch for probe in probes_of(model)]
    return _drawn_for(first, second)


def for_timing(batches: list[Batch], rows: int = 32) -> Batch:
    """The longest of the batches, its rows repeated to 32, where it is ours
    to say how many."""
    batch = max(batches, key=lambda batch: max(x[0].size for x in batch))
    if len({len(b[0]) for b in batches}) == 1:
        return batch
    return [np.resize(x, (rows, *x.shape[1:])) for x in batch]


def _rows_of(data, runnable):
    arrays = list(named_inputs(data, runnable.inputs).values())
    for array, spec in zip(arrays, runnable.inputs, strict=True):
        rows, *shape = spec["shape"]
        fits = array.ndim == 1 + len(shape) and all(
            n in (None, m) for n, m in zip(shape, array.shape[1:], strict=True)
        )
        if not fits or rows not in (None, len(array)):
            raise CliError(
                f"`--data` must hold {spec['name']!r} of shape "
                f"{spec['shape']}, None of any length. Received: "
                f"{list(array.shape)}. Write it in that shape."
            )
    starts = range(0, len(arrays[0]), ROWS)
    return [[array[i : i + ROWS] for array in arrays] for i in starts]


def _drawn_for(first, second):
    """Two batches, of shapes that the artifact is known to take, or may."""
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
        f"{first.path} must take inputs of some length. Received: an error at "
        f"each of {LENGTHS}: {failure}. Pass --data."
    )


def shapes_of(
    inputs: list[dict], size: int, length: int
) -> list[tuple[int, ...]]:
    """The shape of each input for a batch's size and a length."""
    return [shape_of(spec, size, length) for spec in inputs]


def draw(runnable: Runnable, shapes, seed: int = 0) -> Batch:
    """Draw a batch: normal numbers, indices that there are, two words.

    Raises:
        CliError: If an input would have more than `MOST_DRAWN` elements.
    """
    for shape in shapes:
        if math.prod(shape) > MOST_DRAWN:
            raise CliError(
                f"Inputs that are drawn must have at most {MOST_DRAWN:,} "
                f"elements. Received: {list(shape)} for {runnable.path}. Pass "
                "fewer --tokens to bench, or --data to compare."
            )
    rng = np.random.default_rng(seed)
    return [
        random_input(rng, tuple(shape), spec)
        for shape, spec in zip(shapes, runnable.inputs, strict=True)
    ]


def knows_indices(runnable: Runnable) -> bool:
    """Whether it is known what the integers among the inputs may be."""
    return all(
        "below" in spec for spec in runnable.inputs if "int" in spec["dtype"]
    )


def shapes_for_tokens(inputs: list[dict], tokens: int):
    """The shapes that make about as many tokens, and how many those are.

    A token is a position of the first input: of a float input every axis but
    the first and the last counts, of indices every axis but the first. An
    axis of any length takes them, else the batch's size does.
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
