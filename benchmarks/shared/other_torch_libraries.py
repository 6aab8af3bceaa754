"""Build blocks of PyTorch libraries as Keras layers; see `other_libraries.py`.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, C capacity,
n rows of one expert.
"""

import functools

import keras
import numpy as np
import torch
from torch import nn

from benchmarks.shared.other_libraries import CAPACITY_FACTOR, installed


class Wrapped(keras.layers.TorchModuleWrapper):
    """Runs a torch module of `(1, T, D)` as a Keras layer of `(T, D)`."""

    def __init__(self, module):
        super().__init__(module.to(_dtype()))

    def call(self, x, training=None):
        y = super().call(x[None], training=training)
        return (y[0] if isinstance(y, tuple) else y)[0]

    def compute_output_shape(self, input_shape):
        return input_shape


def _dtype():
    return getattr(torch, keras.config.dtype_policy().compute_dtype)


def _parameter(array):
    array = torch.from_numpy(np.ascontiguousarray(array))
    return nn.Parameter(array.to(_dtype()))


def transformers(problem):
    """Return functions that build Hugging Face's Mixtral and Qwen3-MoE."""
    if not installed("transformers"):
        return {}
    weights = functools.cache(lambda: _transformers_weights(problem))
    return {
        f"transformers {name}, {experts}": functools.partial(
            _transformers_layer, name, experts, problem.shape, weights
        )
        for experts in ("grouped_mm", "eager")
        for name in ("Qwen3-MoE", "Mixtral")
    }


def _transformers_weights(problem):
    """Return weights as (out, in), gate before up, shared by all blocks."""
    gate_up = np.concatenate([problem.gate, problem.up], axis=-1)
    return (
        _parameter(problem.router.T),
        _parameter(gate_up.swapaxes(1, 2)),
        _parameter(problem.down.swapaxes(1, 2)),
    )


def _transformers_layer(name, experts, shape, weights):
    build, config = _transformers_blocks(shape)[name]
    config._experts_implementation = experts
    with torch.device("meta"):  # no memory: replaced next
        block = build(config)
    router, gate_up, down = weights()
    block.gate.weight = router
    block.experts.gate_up_proj, block.experts.down_proj = gate_up, down
    return Wrapped(block)


def _transformers_blocks(shape):
    from transformers import MixtralConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import (
        MixtralSparseMoeBlock,
    )
    from transformers.models.qwen3_moe.modeling_qwen3_moe import (
        Qwen3MoeSparseMoeBlock,
    )

    common = {
        "hidden_size": shape.D,
        "hidden_act": "silu",
        "num_experts_per_tok": shape.K,
    }
    qwen3 = Qwen3MoeConfig(
        **common,
        moe_intermediate_size=shape.F,
        num_experts=shape.E,
        norm_topk_prob=True,
    )
    mixtral = MixtralConfig(
        **common, intermediate_size=shape.F, num_local_experts=shape.E
    )
    return {
        "Qwen3-MoE": (Qwen3MoeSparseMoeBlock, qwen3),
        "Mixtral": (MixtralSparseMoeBlock, mixtral),
    }


def lucidrains(problem):
    """Return functions that build lucidrains' two blocks with SwiGLU experts.

    The experts of `st-moe-pytorch` and `mixture-of-experts` compute other
    functions (GEGLU with biases; two matrices), so both get SwiGLU experts by
    their argument `experts`. Their capacity factor is not multiplied by K, so
    they get `1.25 * K`, and also the smallest capacity that drops nothing. The
    random choice of the second expert and the straight-through gradient are
    switched off. `mixture-of-experts` supports only K = 2.
    """
    T, _, _, E, K, _ = problem.shape
    fullest = (int(problem.counts.max()) + 0.5) * E / T
    factors = {
        f"capacity {CAPACITY_FACTOR}": CAPACITY_FACTOR * K,
        "capacity of the fullest": fullest,
    }
    blocks = {}
    if installed("st_moe_pytorch") and K > 1:
        blocks["st-moe-pytorch"] = _st_moe
    if installed("mixture_of_experts") and K == 2:
        blocks["mixture-of-experts"] = _mixture_of_experts
    return {
        f"{block}, {name}": functools.partial(build, problem, factor)
        for block, build in blocks.items()
        for name, factor in factors.items()
    }


class _SwiGLU(nn.Module):
    """Maps `(..., n, D)` to `(..., n, D)` by weights `(..., D, F)`."""

    def __init__(self, gate, up, down):
        super().__init__()
        self.gate, self.up = _parameter(gate), _parameter(up)
        self.down = _parameter(down)

    def forward(self, x):
        hidden = nn.functional.silu(x @ self.gate) * (x @ self.up)
        return hidden @ self.down


def _st_moe(problem, factor):
    from st_moe_pytorch import MoE

    shape = problem.shape
    banks = zip(problem.gate, problem.up, problem.down, strict=True)
    experts = nn.ModuleList(_SwiGLU(*kernels) for kernels in banks)
    block = MoE(
        dim=shape.D,
        num_experts=shape.E,
        gating_top_n=shape.K,
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=factor,
        capacity_factor_eval=factor,
        balance_loss_coef=0.0,
        router_z_loss_coef=0.0,
        straight_through_dispatch_tensor=False,
        experts=experts,
    )
    block.gate.to_gates.weight = _parameter(problem.router.T)
    return Wrapped(block)


def _mixture_of_experts(problem, factor):
    from mixture_of_experts import MoE

    block = MoE(
        dim=problem.shape.D,
        num_experts=problem.shape.E,
        second_policy_train="all",
        second_policy_eval="all",
        capacity_factor_train=factor,
        capacity_factor_eval=factor,
        loss_coef=0.0,
        experts=_SwiGLU(problem.gate, problem.up, problem.down),
    )
    block.gate.w_gating = _parameter(problem.router)
    return Wrapped(block)
