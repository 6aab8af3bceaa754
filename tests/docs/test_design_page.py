"""Test that the design page names the files of a forward pass."""

import pathlib
import re
import sys

import numpy as np
import pytest
from backend import BACKEND

import keras_moe

PACKAGE = pathlib.Path(keras_moe.__file__).parent
PAGE = PACKAGE.parent / "docs" / "contributing" / "design.md"
COLUMNS = {"torch": 0, "jax": 1, "tensorflow": 2}
# Files that the page names beside the walk, or that only compute conditions.
BESIDE = (
    "_jax.py",
    "_keras.py",
    "_tensorflow.py",
    "_torch.py",
    "checks/",
    "kernels/captured.py",
    "kernels/forced.py",
    "kernels/generic.py",
    "kernels/layer_hooks.py",
    "kernels/jax/exchange.py",
    "kernels/jax/layer_hooks.py",
    "kernels/jax/reverse_only.py",
    "kernels/jax/varying.py",
    "kernels/tensorflow/layer_hooks.py",
    "kernels/tensorflow/row_ops.py",
    "kernels/torch/layer_hooks.py",
    "kernels/torch/light_ops.py",
    "kernels/torch/tracing.py",
    "layers/added_losses.py",
    "layers/expert_parallel.py",
    "layers/traces.py",
    "layers/trainable_parts.py",
)


def named():
    """Return the files in the page's two tables for the active backend."""
    text = PAGE.read_text().split("## The walk of one token")[1]
    text = text.split("Beside the walk")[0]
    common, own = text.split("and then through those of the running backend")
    files = set(re.findall(r"`([\w/]+\.py)`", common))
    files = {name.replace("BACKEND", BACKEND) for name in files}
    for line in own.splitlines():
        cells = line.strip("|").split("|")
        if len(cells) == 3:
            files |= set(re.findall(r"`([\w/]+\.py)`", cells[COLUMNS[BACKEND]]))
    return files


@pytest.fixture
def visited():
    """Return the paths of the files whose functions run in a forward pass."""
    block = keras_moe.MoEBlock(8, intermediate_dim=32)
    x = np.random.default_rng(0).normal(size=(4, 6, 16)).astype("float32")
    block(x)
    found, before = set(), sys.getprofile()

    def note(frame, event, arg):
        path = pathlib.Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            found.add(path.relative_to(PACKAGE).as_posix())

    sys.setprofile(note)
    try:
        block(x)
    finally:
        sys.setprofile(before)
    return found


def test_the_page_names_the_files_of_the_walk(visited):
    walk = {name for name in visited if not name.startswith(BESIDE)}
    assert walk == {n for n in named() if not n.startswith(BESIDE)}
    assert named() <= visited


def test_the_walk_is_short():
    assert len(named()) <= 16
