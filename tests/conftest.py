"""Set up every test: a quiet backend, a fixed seed, and speed switches."""

import functools
import gc
import os
import shutil
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Optimizing a test's program takes longer than running it, so the optimizers
# are off. These flags turn off XLA's (LLVM's optimization level and the fusion
# emitters) and keep XLA from splitting a program to compile it in parallel,
# because every core already runs a worker. TensorFlow's graph optimizer is
# turned off below. `tests/as_used/` and the test of the quickstart run without
# these switches, as users do.
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
    """Make weights and random draws the same in every run."""
    keras.utils.set_random_seed(0)


def has_slots_to_make(model):
    """Return whether `fit` would build one of Keras's own optimizers."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or optimizer.built or not model.built:
        return False
    return not type(optimizer).__module__.startswith("keras_moe")


@pytest.fixture(autouse=True, scope="session")
def one_trace():
    """Build the optimizer before the first step, not within it.

    If a step creates variables, TensorFlow traces it again, which doubles the
    time.
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


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """Exempt objects left by earlier test files from garbage collection.

    Keras collects garbage each time an attribute is deleted, which takes half
    a second in a process that holds backends and traced programs.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    """Return a NumPy generator that is independent of the backend's."""
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def default_dtype_policy():
    """Restore the global dtype policy after a test that sets it."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(params=RUNS, ids=lambda run: f"{run[0]}-{run[1]}")
def formulation(request):
    """Force each formulation in turn, and yield its name."""
    with kernels.use(request.param[0]):
        yield request.param[0]


@pytest.fixture
def compiled(request, formulation):
    """Return how the formulation is run."""
    return request.node.callspec.params["formulation"][1]


collect_ignore = ["as_used"]  # `make test` runs it without this file
# `make test` runs tests that are marked `one_backend` on this backend only.
HOME_BACKEND = "torch"
LONGEST = 20  # maximum seconds of a test that is not marked `slow`
STARTED = pytest.StashKey[np.ndarray]()


def pytest_configure(config):
    """Discard the output of importing the backend, and share JAX's programs.

    The process that hands out the tests would print that output at its end,
    after pytest's closing line. That process also creates the folder of
    compiled programs for its workers and for the processes that tests start.
    """
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.read_global_capture()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="keras_moe-jax-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests as `repeated` if `make test` runs them on another backend."""
    if keras.backend.backend() == HOME_BACKEND:
        return
    for item in items:
        one = item.get_closest_marker("one_backend")
        if one and not item.get_closest_marker("every_backend"):
            item.add_marker("repeated")


def clocks():
    """Return wall time and CPU time, which includes ended child processes."""
    return np.array([time.monotonic(), sum(os.times()[:4])])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Start a test's clocks."""
    item.stash[STARTED] = clocks()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail a test that takes too long for `make test`.

    The smaller of wall time and CPU time counts, so that a busy machine does
    not cause failures.
    """
    report = yield
    left_out = any(map(item.get_closest_marker, ("slow", "repeated")))
    if report.when == "call" and report.passed and not left_out:
        seconds = min(clocks() - item.stash[STARTED])
        if seconds > LONGEST:
            report.outcome = "failed"
            report.longrepr = (
                f"The test took {seconds:.0f} s, and {LONGEST} s is the limit."
                " Make the test smaller, or mark it `slow`."
            )
    return report
