"""Run the README's Python blocks, in order, as one script."""

import inspect
import re
import textwrap

import keras
import numpy as np
import pytest
from backend import BACKEND
from paths import ROOT

import keras_moe

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

README = (ROOT / "README.md").read_text()


EXPORTING = [False]
if BACKEND == "torch":  # test_export.py exports from every backend
    EXPORTING.append(pytest.param(True, marks=pytest.mark.slow))


# Keras warns about every layer that has no weights to quantize.
@pytest.mark.filterwarnings("ignore:.*`quantize` method implemented")
@pytest.mark.parametrize("exporting", EXPORTING)
def test_python_blocks_run(exporting, tmp_path, monkeypatch):
    """The block that exports runs only in `make test-all`.

    In `make test`, `test_export.py` exports.
    """
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    exports = [b for b in blocks if b.startswith("from keras_moe import ex")]
    assert len(exports) == 1
    if not exporting:
        blocks.remove(*exports)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "model.keras").exists()
    assert namespace["expert_of_pair"].shape == (256 * 10 * 2,)
    assert set(namespace["example_of_pair"]) == set(range(256))
    assert len(namespace["history"].history["moe/imbalance"]) == 1
    assert namespace["outputs"].shape == (256, 10, 64)
    assert namespace["replayed"].shape == (256, 10, 64)
    assert 3 not in np.asarray(namespace["assignment"].expert_index)
    assert namespace["classifier"].output_shape == (None, None, 5)


def test_the_router_of_the_contributing_guide(rng):
    """The two blocks of the guide define a router that trains a block."""
    page = ROOT / "docs" / "contributing" / "adding-a-router.md"
    text = page.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    namespace = {
        **vars(keras_moe.routing.assignment),
        **vars(keras_moe.layers),
        "keras": keras,
        "checks": keras_moe.checks,
    }
    for block in blocks:
        exec(
            compile(textwrap.dedent(block), page.name, "exec"),
            namespace,
        )
    block = keras_moe.MoEBlock(4, 6, router=namespace["MyRouter"](4))
    x = rng.normal(size=(9, 5)).astype("float32")
    outputs, kept = block(x, training=True, return_assignment=True)
    assert outputs.shape == (9, 5)
    assert kept.expert_index.shape == (18,)
    assert len(block.losses) == 1


def test_the_number_of_parameters_of_its_example():
    """Eight experts of width 128 have four times the kernels of a dense 256."""
    block = keras_moe.MoEBlock(8, 128, use_bias=False)
    dense = keras_moe.Expert(256, use_bias=False)
    for layer in (block, dense):
        layer.build((None, 64))
    assert block.experts.count_params() == 4 * dense.count_params()


def test_every_public_layer_is_named():
    for name in keras_moe.__all__:
        if inspect.isclass(getattr(keras_moe, name)):
            assert f"`{name}`" in README


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:^|`)make (\w+)", README, flags=re.MULTILINE)
    assert {"demo", "test", "setup", "bench"} <= set(named)
    for target in set(named):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
