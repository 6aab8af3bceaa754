"""Make inputs of two sizes that reach every expert, to verify an artifact.

E experts. A batch is the list of a model's input arrays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np

from keras_moe import _keras
from keras_moe.export.artifact import named_inputs
from keras_moe.export.manifest import input_specs
from keras_moe.export.observing import Observation, observer

SIZES = 2, 3
# The first pair that the model accepts is used. Images need longer axes.
LENGTHS = ((5, 9), (16, 24), (32, 48), (2, 3))
MANY = 32
ROUNDS = 32
WORDS = np.array(["a", "b"])
BELOW = 2  # the upper bound of indices if the manifest has none


class Probe(NamedTuple):
    """Hold a batch and what the Keras model computes for it.

    Attributes:
        batch: List of the model's input arrays.
        observation: What the model computes for them.
    """

    batch: list[np.ndarray]
    observation: Observation


Observe: TypeAlias = Callable[[list[np.ndarray]], Observation]
Draw: TypeAlias = Callable[[int, int, float], list[np.ndarray]]
"""A function of a batch size, a length, and a scale that returns a batch."""


def probes_of(
    model: keras.Model, data: Any = None, seed: int = 0
) -> list[Probe]:
    """Return the batches to verify an artifact with.

    The first two batches have different sizes, and different lengths on the
    axes of unknown length. Up to 32 further batches are drawn until every
    expert is reached; those that reach a new expert are kept.

    Args:
        model: From `as_functional`.
        data: Arrays to choose the batches from, in the form in which the model
            accepts them. `None` (the default) draws normal numbers, words
            from the model's vocabulary, and indices that every embedding has.
        seed: Int, seed of the random numbers. Default: 0.

    Raises:
        ValueError: If the model accepts none of the lengths that are tried.
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
    """Return the path and the index of each expert that no probe reaches."""
    return [
        (path, int(e))
        for path in probes[0].observation.pairs
        for e in np.flatnonzero(
            sum(p.observation.pairs[path] for p in probes) == 0
        )
    ]


def _first_probe(
    model: keras.Model, observe: Observe, draw: Draw
) -> tuple[Probe, tuple[int, int]]:
    """Return the first probe and the first pair of lengths that works."""
    for lengths in LENGTHS:
        batch = draw(SIZES[0], lengths[0], 1.0)
        try:
            observe(draw(SIZES[0], lengths[1], 1.0))
            return Probe(batch, observe(batch)), lengths
        except Exception as error:  # noqa: BLE001  any backend's own
            failure = error
    raise ValueError(
        "`model` must accept inputs of one of the lengths that verification "
        f"tries. Received: an error at each of {LENGTHS}: {failure!r}. Pass "
        "`data`, an `input_signature` that fixes the length, or verify=False."
    )


def _drawer(model: keras.Model, data: Any, rng: np.random.Generator) -> Draw:
    """Return the function that draws batches, from `data` if there is any."""
    specs = input_specs(model)
    if data is None:
        words = _vocabulary(model)

        def draw(size: int, length: int, scale: float) -> list[np.ndarray]:
            return [
                random_input(
                    rng, shape_of(spec, size, length), spec, scale, words
                )
                for spec in specs
            ]

        return draw
    arrays = list(named_inputs(data, specs).values())

    def choose(size: int, length: int, scale: float) -> list[np.ndarray]:
        rows = rng.choice(len(arrays[0]), min(size, len(arrays[0])), False)
        return [array[rows] for array in arrays]

    return choose


def shape_of(spec: dict[str, Any], size: int, length: int) -> tuple[int, ...]:
    """Return the shape of an input for a batch size and a length."""
    first, *rest = spec["shape"]
    return (first or size, *(length if n is None else n for n in rest))


def random_input(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    spec: dict[str, Any],
    scale: float = 1.0,
    words: np.ndarray = WORDS,
) -> np.ndarray:
    """Draw one input: normal numbers, valid indices, or words.

    Args:
        rng: Random generator.
        shape: Shape of the array.
        spec: Spec of the input, as in the manifest.
        scale: Standard deviation of the numbers. Default: 1.
        words: Words to choose from. Default: `WORDS`.
    """
    dtype = spec["dtype"]
    if dtype == "string":
        return rng.choice(words, shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if "int" in dtype:
        return rng.integers(0, spec.get("below", BELOW), shape).astype(dtype)
    return (scale * rng.normal(size=shape)).astype(dtype)


def _vocabulary(model: keras.Model) -> np.ndarray:
    """Return the words of a model's `TextVectorization`, and a text of 40."""
    for layer in _keras.every_layer_of(model):
        if isinstance(layer, keras.layers.TextVectorization):
            words = [w for w in layer.get_vocabulary() if w] or ["a"]
            return np.array([*words, " ".join(words[:40])])
    return WORDS
