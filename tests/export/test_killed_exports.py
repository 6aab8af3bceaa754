"""Kill a process while a converter works, and check the old artifact.

The other tests of kills replace the converters and kill at each step.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from backend import BACKEND, to_numpy
from killed_exports import X, main, make_model
from paths import SUPPORT

from keras_moe.export import FORMATS, load

# Each process that is killed takes seconds to start.
pytestmark = pytest.mark.slow

SCRIPT = SUPPORT / "killed_exports.py"
# TensorFlow and PyTorch write these themselves; JAX starts TensorFlow for it.
FORMAT = {"jax": "litert", "tensorflow": "tf_saved_model", "torch": "torch"}[
    BACKEND
]
LONGEST = 120  # the most seconds that an export may take


def begun(scratch):
    """Return whether the folder is made, so the converter is about to work."""
    return (scratch / "new").is_dir()


def at_work(scratch):
    """Return whether the converter has worked for a while."""
    if BACKEND == "jax":
        return any(scratch.rglob("__autograph_generated_file*"))
    if begun(scratch):
        time.sleep(0.5)
        return True
    return False


def written(scratch):
    """Return whether the new artifact, which is soon swapped in, has a file."""
    return (scratch / "new" / FORMATS[FORMAT].parts[0]).exists()


def kill_export(folder, seed, moment):
    """Kill an export at a moment, or when it has ended."""
    command = [sys.executable, SCRIPT, folder, FORMAT, str(seed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + LONGEST
    while process.poll() is None and not is_reached(moment, folder):
        assert time.monotonic() < end
    process.kill()
    return process.wait()


def is_reached(moment, folder):
    try:
        return any(map(moment, hidden(folder)))
    except FileNotFoundError:  # a converter removed a folder meanwhile
        return False


def hidden(folder):
    return list(folder.glob(".keras_moe-writing-*"))


def outputs_of(folder):
    [y] = load(folder / "artifact")(X)
    return y


def test_kill_9_while_a_converter_works(tmp_path):
    old, new = (to_numpy(make_model(seed)(X)) for seed in range(2))
    main(tmp_path, FORMAT, 0)
    for moment in (begun, at_work):
        code = kill_export(tmp_path, 1, moment)
        assert code == -signal.SIGKILL, moment
        assert len(hidden(tmp_path)) == 1
        np.testing.assert_allclose(outputs_of(tmp_path), old, atol=1e-5)
    kill_export(tmp_path, 1, written)
    found = outputs_of(tmp_path)
    assert any(np.allclose(found, y, rtol=0, atol=1e-5) for y in (old, new))
    # TensorFlow's process ends soon after JAX's, and leaves nothing.
    main(tmp_path, FORMAT, 1)
    time.sleep(1)
    assert os.listdir(tmp_path) == ["artifact"]
    np.testing.assert_allclose(outputs_of(tmp_path), new, atol=1e-5)
