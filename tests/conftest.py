"""What every test starts from: a quiet backend and a fixed seed."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from kernel_cases import RUNS

from keras_moe import kernels


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


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def formulation(request):
    """Forces each formulation in turn; yields its name."""
    with kernels.use(request.param[0]):
        yield request.param[0]


@pytest.fixture
def compiled(request, formulation):
    """How the formulation is run."""
    return request.node.callspec.params["formulation"][1]


def pytest_configure(config):
    """Drops what importing the backend wrote.

    The process that hands out the tests would print it at its end, behind
    pytest's closing line.
    """
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.read_global_capture()
