"""Load files that an earlier version saved, and find its public names.

`tests/package/saved_before/make_files.py` wrote the files at an earlier commit.
"""

import importlib
import json
import pathlib

import keras
import numpy as np
import pytest
from backend import to_numpy

import keras_moe  # noqa: F401  registers the classes
from keras_moe import export

FOLDER = pathlib.Path(__file__).parent / "saved_before"
ARRAYS = dict(np.load(FOLDER / "arrays.npz"))
MODELS = sorted(path.stem for path in FOLDER.glob("*.keras"))
NAMES = json.loads((FOLDER / "public_names.json").read_text())
EVERYWHERE = ("experts", "language_model", "routers")


def inputs_of(name):
    found = {
        key.removeprefix(f"{name}/x/"): array
        for key, array in ARRAYS.items()
        if key.startswith(f"{name}/x/")
    }
    return found[""] if "" in found else found


def outputs_of(name):
    return [a for key, a in ARRAYS.items() if key.startswith(f"{name}/y/")]


def assert_equal(outputs, name):
    outputs, expected = keras.tree.flatten(outputs), outputs_of(name)
    assert len(outputs) == len(expected) > 0
    for y, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(to_numpy(y), wanted, rtol=1e-4, atol=1e-5)


def test_there_are_files():
    assert len(MODELS) == 9


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in EVERYWHERE
        else pytest.param(name, marks=pytest.mark.one_backend)
        for name in MODELS
    ],
)
def test_a_saved_model_has_the_same_outputs(name):
    model = keras.saving.load_model(FOLDER / f"{name}.keras")
    assert_equal(model(inputs_of(name), training=False), name)


@pytest.mark.one_backend
def test_an_artifact_has_the_same_outputs():
    model = export.load(FOLDER / "tasks-litert")
    outputs = model(inputs_of("tasks"))
    assert_equal(list(outputs), "tasks")


@pytest.mark.one_backend
@pytest.mark.parametrize("module", NAMES)
def test_the_public_names_are_still_there(module):
    here = vars(importlib.import_module(module))
    assert set(NAMES[module]) <= set(here)
