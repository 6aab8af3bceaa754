"""Compare blocks with those of Hugging Face transformers."""

import backend
import numpy as np
import pytest
from elsewhere import run_on

from keras_moe import ClippedSwiGLU, Expert, MoEBlock, Router

ROUTERS = {  # arguments of Router(8, ...)
    "mixtral": {"top_k": 2},
    "qwen3_normalized": {"top_k": 3},
    "qwen3": {"top_k": 3, "normalize_weights": False},
    "qwen2_moe": {"top_k": 3, "normalize_weights": False},
    "llama4": {"top_k": 2, "scoring": "sigmoid", "normalize_weights": False},
    "switch": {"top_k": 1, "normalize_weights": False},
    "deepseek_v3": {
        "top_k": 3,
        "scoring": "sigmoid",
        "num_groups": 4,
        "top_k_groups": 2,
        "expert_bias": True,
        "routed_scaling_factor": 2.5,
    },
    "gpt_oss": {"top_k": 2, "scoring": "topk_softmax", "use_bias": True},
    "deepseek_v4": {"top_k": 2},
    "longcat_flash": {
        "top_k": 4,
        "normalize_weights": False,
        "expert_bias": True,
        "expert_bias_step": 0,
        "num_null_experts": 3,
        "null_outputs": "identity",
        "routed_scaling_factor": 1.5,
    },
}
ACTIVATIONS = {  # the limit is that of huggingface_oracle.py
    "switch": "relu",
    "gpt_oss": ClippedSwiGLU(1.0),
    "deepseek_v4": ClippedSwiGLU(1.0, alpha=1.0, up_offset=0.0),
}
OPTIONS = {  # arguments of MoEBlock
    "switch": {"expert_capacity": 2},
    "llama4": {"shared_expert_dim": 24, "weights_on": "inputs"},
    "qwen2_moe": {"shared_expert_dim": 24, "shared_expert_gate": True},
    "deepseek_v3": {"shared_expert_dim": 24},
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Return the folder of the outputs and gradients of each block."""
    out = tmp_path_factory.mktemp("oracle")
    run_on("torch", "huggingface_oracle", out, *ROUTERS)
    return out


@pytest.mark.parametrize(
    "name",
    [
        "mixtral",
        "qwen2_moe",
        "llama4",
        "switch",
        "deepseek_v3",
        "gpt_oss",
        "longcat_flash",
        *(
            pytest.param(name, marks=pytest.mark.one_backend)
            for name in ("qwen3_normalized", "qwen3", "deepseek_v4")
        ),
    ],
)
def test_outputs_and_gradients(oracle, name, monkeypatch):
    arrays = dict(np.load(oracle / f"{name}.npz"))
    block = MoEBlock(
        8,
        router=Router(8, name="router", **ROUTERS[name]),
        experts=Expert(
            24,
            8,
            activation=ACTIVATIONS.get(name, "silu"),
            gated=name != "switch",
            use_bias=name == "gpt_oss",
            name="experts",
        ),
        **OPTIONS.get(name, {}),
    )
    block.build((None, None, 16))
    if block.router.expert_bias:
        block.router.expert_bias_weight.assign(arrays["expert_bias"])
    for key, value in arrays.items():
        part, _, weight = key.partition("/")
        if weight and ":" not in part:
            getattr(getattr(block, part), weight).assign(value)
    monkeypatch.setattr(backend, "upstream", lambda _: arrays["upstream"])
    y, gradients = backend.layer_gradients(block, arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], atol=1e-5)
    wanted = {
        key.removeprefix("gradient:"): value
        for key, value in arrays.items()
        if key.startswith("gradient:")
    }
    got = {"/".join(n.split("/")[-2:]): g for n, g in gradients.items()}
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert np.abs(gradient).max() > 0.01
        np.testing.assert_allclose(got[name], gradient, atol=1e-4)
