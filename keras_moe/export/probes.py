"""Inputs that try an artifact: two sizes of everything, every expert asked.

E experts. A batch is the list of a model's input arrays.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from keras_moe import _keras
from keras_moe.export.artifact import named_inputs
from keras_moe.export.manifest import input_specs
from keras_moe.export.observing import Observation, observer

SIZES = 2, 3
# The first pair of lengths that the model takes; images want more than words.
LENGTHS = ((5, 9), (16, 24), (32, 48), (2, 3))
MANY = 32
ROUNDS = 32
WORDS = np.array(["a", "b"])
BELOW = 2  # what indices are below where nothing is known of them


class Probe(NamedTuple):
    """A batch, and what the Keras model says to it."""

    batch: list[np.ndarray]
    observation: Observation


def probes_of(model: keras.Model, data=None, seed: int = 0) -> list[Probe]:
    """Returns what to try an artifact with.

    Two batches of different sizes, with different lengths on the axes that may
    have any. After them, of as many further batches as it takes (at most 32),
    those that reach an expert that no batch before them reached.

    Args:
        model: from `as_functional`.
        data: arrays to take the batches from, as the model takes them; None
            draws numbers at random, words from the model's vocabulary, and
            indices that every embedding has.
        seed: int, of what is drawn.

    Raises:
        ValueError: where the model takes none of the lengths that are tried.
    """
    observe = observer(model)
    draw = _drawer(model, data, np.random.default_rng(seed))
    first, lengths = _first_probe(model, observe, draw)
    second = draw(SIZES[1], lengths[1], 1.0)
    probes = [first, Probe(second, observe(second))]
    for scale in np.geomspace(0.3, 3.0, ROUNDS):
        missing = unreached(probes)
        if not missing:
            break
        batch = draw(MANY, lengths[1], scale)
        probe = Probe(batch, observe(batch))
        if any(probe.observation.pairs[path][e] for path, e in missing):
            probes.append(probe)
    return probes


def unreached(probes: list[Probe]) -> list[tuple[str, int]]:
    """Returns the path and the index of each expert that no probe asked."""
    return [
        (path, int(e))
        for path in probes[0].observation.pairs
        for e in np.flatnonzero(
            sum(p.observation.pairs[path] for p in probes) == 0
        )
    ]


def _first_probe(model, observe, draw):
    """The first probe, and the pair of lengths it showed to be possible."""
    for lengths in LENGTHS:
        batch = draw(SIZES[0], lengths[0], 1.0)
        try:
            observe(draw(SIZES[0], lengths[1], 1.0))
            return Probe(batch, observe(batch)), lengths
        except Exception as error:  # noqa: BLE001  any backend's own
            failure = error
    raise ValueError(
        "`model` must take inputs of some length for an artifact to be "
        f"verified. Received: an error at each of {LENGTHS}: {failure!r}. Pass "
        "`data`, or an `input_signature` that fixes the length, or "
        "verify=False."
    )


def _drawer(model, data, rng) -> Callable:
    """Returns a function of a size, a length and a scale: a batch."""
    specs = input_specs(model)
    if data is None:
        words = _vocabulary(model)

        def draw(size, length, scale):
            return [
                random_input(
                    rng, shape_of(spec, size, length), spec, scale, words
                )
                for spec in specs
            ]

        return draw
    arrays = list(named_inputs(data, specs).values())

    def choose(size, length, scale):
        rows = rng.choice(len(arrays[0]), min(size, len(arrays[0])), False)
        return [array[rows] for array in arrays]

    return choose


def shape_of(spec: dict, size: int, length: int) -> tuple[int, ...]:
    """Returns the shape of an input for a batch's size and a length."""
    first, *rest = spec["shape"]
    return (first or size, *(length if n is None else n for n in rest))


def random_input(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    spec: dict,
    scale: float = 1.0,
    words: np.ndarray = WORDS,
) -> np.ndarray:
    """Draws one input: normal numbers, indices that there are, or words.

    Args:
        rng: to draw from.
        shape: of the array.
        spec: of the input, as in the manifest.
        scale: standard deviation of the numbers.
        words: to choose from.
    """
    dtype = spec["dtype"]
    if dtype == "string":
        return rng.choice(words, shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if "int" in dtype:
        return rng.integers(0, spec.get("below", BELOW), shape).astype(dtype)
    return (scale * rng.normal(size=shape)).astype(dtype)


def _vocabulary(model):
    """Words and pairs of words that the model's `TextVectorization` knows."""
    for layer in _keras.every_layer_of(model):
        if isinstance(layer, keras.layers.TextVectorization):
            words = [w for w in layer.get_vocabulary() if w] or ["a"]
            return np.array([*words, " ".join(words[:40])])
    return WORDS
