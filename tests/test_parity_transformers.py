"""Equal to Hugging Face transformers' MoE blocks, values and gradients."""

import pathlib
import subprocess
import sys

import backend
import numpy as np
import pytest

from keras_moe import Expert, MoEBlock, Router

BLOCKS = {  # (top_k, normalize_weights)
    "mixtral": (2, True),
    "qwen3_normalized": (3, True),
    "qwen3": (3, False),
}


@pytest.fixture(scope="module", params=BLOCKS)
def oracle(request, tmp_path_factory):
    """The name of a block and what it computed."""
    out = tmp_path_factory.mktemp("oracle") / "arrays.npz"
    script = pathlib.Path(__file__).with_name("huggingface_oracle.py")
    subprocess.run([sys.executable, script, request.param, out], check=True)
    return request.param, dict(np.load(out))


def test_outputs_and_gradients(oracle, monkeypatch):
    name, arrays = oracle
    top_k, normalize_weights = BLOCKS[name]
    block = MoEBlock(
        8,
        router=Router(8, top_k, normalize_weights=normalize_weights),
        experts=Expert(24, 8, activation="silu", gated=True, use_bias=False),
    )
    block.build((None, None, 16))
    block.router.kernel.assign(arrays["router/kernel"])
    for weight in ("gate_kernel", "up_kernel", "down_kernel"):
        getattr(block.experts, weight).assign(arrays[f"experts/{weight}"])
    monkeypatch.setattr(backend, "upstream", lambda _: arrays["upstream"])
    y, gradients = backend.layer_gradients(block, arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], atol=1e-5)
    wanted = {
        key.removeprefix("gradient:").rsplit("/")[-1]: value
        for key, value in arrays.items()
        if key.startswith("gradient:")
    }
    got = {name.rsplit("/")[-1]: g for name, g in gradients.items()}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(got[name], gradient, atol=1e-4)
