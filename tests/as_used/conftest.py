"""Run the package as its users do.

`tests/conftest.py` turns optimizers of XLA and TensorFlow off and patches
`fit`, for the whole process. These tests run without that file, in a pytest
process of their own: `pytest --confcutdir tests/as_used tests/as_used`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def fixed_seed():
    """Make weights and random draws the same in every run."""
    # The process that hands out the tests imports no backend, whose messages
    # would come after pytest's closing line.
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    """Return a NumPy generator that is independent of the backend's."""
    return np.random.default_rng(0)
