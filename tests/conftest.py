"""What every test starts from: a quiet backend and a fixed seed."""

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A test's programs take longer to optimise than to run, so the optimisers are
# off: XLA's here (levels of LLVM and fusions: one alone gains little; and a
# program is not cut into parts to compile at once, where both cores have a
# worker) and TensorFlow's of graphs below. `XLA_FLAGS= make test` leaves both
# on, as users have them; the quickstart's test always does.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

import keras
import numpy as np
import pytest
from kernel_cases import RUNS

from keras_moe import kernels

if keras.backend.backend() == "tensorflow" and os.environ["XLA_FLAGS"]:
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )


@pytest.fixture(autouse=True)
def fixed_seed():
    """Makes weights and draws the same in every run."""
    keras.utils.set_random_seed(0)


def has_slots_to_make(model):
    """Whether `fit` would build one of Keras's optimizers (not ours)."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or optimizer.built or not model.built:
        return False
    return not type(optimizer).__module__.startswith("keras_moe")


@pytest.fixture(autouse=True, scope="session")
def one_trace():
    """Builds the optimizer before the first step, not within.

    TensorFlow traces a step again that made variables, at twice the time.
    """
    fit = keras.Model.fit

    def built_fit(model, *args, **kwargs):
        if has_slots_to_make(model):
            model.optimizer.build(model.trainable_variables)
        return fit(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if keras.backend.backend() == "tensorflow":
            patch.setattr(keras.Model, "fit", functools.wraps(fit)(built_fit))
        yield


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
