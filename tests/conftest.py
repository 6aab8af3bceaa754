"""What every test starts from: a quiet backend and a fixed seed."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    """Makes weights and draws the same in every run."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    """A NumPy generator, apart from the backend's own."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def default_dtype_policy():
    """Puts the global dtype policy back after a test that sets it."""
    yield
    keras.config.set_dtype_policy("float32")
