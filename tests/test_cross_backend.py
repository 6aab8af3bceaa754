"""A `.keras` file from this backend gives the same outputs on another one.

Each backend saves every layer once and loads every layer once; the examples
and the quantised models go the ways that are not gone here.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from backend import BACKEND
from zoo import LAYERS, WIDTH, model_of

OTHER = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}[BACKEND]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every layer in a trained model, saved, and loaded on the other one."""
    folder = tmp_path_factory.mktemp("models")
    x = np.random.default_rng(0).normal(size=(6, 5, WIDTH)).astype("float32")
    np.save(folder / "x.npy", x)
    for name, make in LAYERS.items():
        model = model_of(make())
        model.compile("adam", "mse")
        model.fit(x, x.mean(axis=(1, 2)), verbose=0)
        np.save(folder / f"{name}.npy", model.predict(x, verbose=0))
        model.save(folder / f"{name}.keras")
    script = pathlib.Path(__file__).with_name("load_elsewhere.py")
    environment = {**os.environ, "KERAS_BACKEND": OTHER}
    subprocess.run(
        [sys.executable, script, folder], check=True, env=environment
    )
    return folder


@pytest.mark.parametrize("name", LAYERS)
def test_saved_here_and_loaded_there(folder, name):
    here = np.load(folder / f"{name}.npy")
    there = np.load(folder / f"{name}.{OTHER}.npy")
    np.testing.assert_allclose(there, here, atol=1e-5)
