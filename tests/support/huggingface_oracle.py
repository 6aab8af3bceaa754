"""Run Hugging Face's MoE blocks on random weights.

The script runs in a PyTorch process, because the test run may use another
backend. It writes NAME.npz into the folder OUT: inputs, weights (with
keras_moe's names and layout), the output, and the gradients of the output's
sum weighted by `upstream`.
"""

import types

import numpy as np
import torch
from transformers import (
    DeepseekV3Config,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4Experts,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.longcat_flash.modeling_longcat_flash import (
    LongcatFlashMoE,
)
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import (
    Qwen2MoeSparseMoeBlock,
)
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeSparseMoeBlock,
)
from transformers.models.switch_transformers import (
    modeling_switch_transformers as switch_transformers,
)

D, F, E, N = 16, 24, 8, 3
LIMIT = 1.0  # about the standard deviation of gate and up


class DeepseekV4(torch.nn.Module):
    """DeepSeek-V4's experts behind Mixtral's router."""

    def __init__(self, config):
        super().__init__()
        self.gate = torch.nn.Linear(D, E, bias=False)
        self.experts = DeepseekV4Experts(config)

    def forward(self, x):
        rows = x.reshape(-1, D)
        logits, index = self.gate(rows).topk(2)
        return self.experts(rows, index, logits.softmax(-1)).reshape(x.shape)


def build(name):
    sizes = {"hidden_size": D, "hidden_act": "silu"}
    if name == "gpt_oss":
        config = GptOssConfig(
            hidden_size=D,
            intermediate_size=F,
            num_local_experts=E,
            num_experts_per_tok=2,
            swiglu_limit=LIMIT,
        )
        config._experts_implementation = "eager"
        return GptOssMLP(config)
    if name == "deepseek_v4":
        config = types.SimpleNamespace(
            **sizes,
            intermediate_size=F,
            num_local_experts=E,
            swiglu_limit=LIMIT,
            _experts_implementation="eager",
        )
        return DeepseekV4(config)
    if name == "mixtral":
        config = MixtralConfig(
            **sizes,
            intermediate_size=F,
            num_local_experts=E,
            num_experts_per_tok=2,
        )
        block = MixtralSparseMoeBlock
    elif name == "deepseek_v3":
        config = DeepseekV3Config(
            **sizes,
            moe_intermediate_size=F,
            n_routed_experts=E,
            num_experts_per_tok=3,
            n_group=4,
            topk_group=2,
            n_shared_experts=1,
            routed_scaling_factor=2.5,
        )
        block = DeepseekV3MoE
    elif name == "longcat_flash":
        config = types.SimpleNamespace(
            **sizes,
            expert_ffn_hidden_size=F,
            n_routed_experts=E,
            zero_expert_num=N,
            num_local_experts=E,
            num_experts_per_tok=4,
            routed_scaling_factor=1.5,
        )
        block = LongcatFlashMoE
    elif name == "llama4":
        config = Llama4TextConfig(
            **sizes,
            intermediate_size=F,
            num_local_experts=E,
            num_experts_per_tok=2,
        )
        block = Llama4TextMoe
    elif name == "qwen2_moe":
        config = Qwen2MoeConfig(
            **sizes,
            moe_intermediate_size=F,
            shared_expert_intermediate_size=F,
            num_experts=E,
            num_experts_per_tok=3,
        )
        block = Qwen2MoeSparseMoeBlock
    else:
        config = Qwen3MoeConfig(
            **sizes,
            moe_intermediate_size=F,
            num_experts=E,
            num_experts_per_tok=3,
            norm_topk_prob=name == "qwen3_normalized",
        )
        block = Qwen3MoeSparseMoeBlock
    config._experts_implementation = "eager"
    return block(config)


def in_keras_layout(name, tensors):
    """Return the weights of a block, or their gradients, by our names.

    Gate and up are two halves, or alternate in GPT-OSS. Kernels of shape
    `(out, in)` are transposed, and the shared expert becomes a bank of one.
    """
    if name == "longcat_flash":  # which has unused kernels of null experts
        tensors = {
            "gate.weight": tensors["router.classifier.weight"],
            "experts.gate_up_proj": tensors["experts.gate_up_proj"][:E],
            "experts.down_proj": tensors["experts.down_proj"],
        }
    router = "router" if name in ("llama4", "gpt_oss") else "gate"
    arrays = {"router/kernel": tensors[f"{router}.weight"].T}
    gate_up, down = (
        tensors[f"experts.{part}_proj"] for part in ("gate_up", "down")
    )
    if router == "gate":
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    halves = [slice(0, F), slice(F, None)]
    if name == "gpt_oss":
        halves = [slice(0, None, 2), slice(1, None, 2)]
        arrays["router/bias"] = tensors["router.bias"]
        arrays["experts/down_bias"] = tensors["experts.down_proj_bias"]
        bias = tensors["experts.gate_up_proj_bias"]
        for part, half in zip(("gate", "up"), halves, strict=True):
            arrays[f"experts/{part}_bias"] = bias[:, half]
    for part, half in zip(("gate", "up"), halves, strict=True):
        arrays[f"experts/{part}_kernel"] = gate_up[..., half]
    arrays["experts/down_kernel"] = down
    for key, value in tensors.items():
        if key == "shared_expert_gate.weight":
            arrays["shared_expert_gate/kernel"] = value.T
        elif key.startswith("shared_expert"):
            part = key.split(".")[-2].removesuffix("_proj")
            arrays[f"shared_expert/{part}_kernel"] = value.T[None]
    return arrays


def run(name, out):
    torch.manual_seed(0)
    block = build(name)
    weights = dict(block.named_parameters())
    for weight in weights.values():
        torch.nn.init.normal_(weight, std=0.3)
    router = "router" if name == "longcat_flash" else "gate"
    bias = dict(block.named_buffers()).get(f"{router}.e_score_correction_bias")
    bias = torch.zeros(E) if bias is None else bias
    bias.copy_(torch.linspace(-0.2, 0.2, len(bias)))
    x = torch.randn(3, 11, D, requires_grad=True)
    upstream = torch.randn(3, 11, D)
    y = block(x)
    if isinstance(y, tuple):  # of Llama 4, flat, and the router's results
        y = y[0].reshape(x.shape)
    (y * upstream).sum().backward()
    arrays = {"x": x, "upstream": upstream, "y": y, "expert_bias": bias}
    arrays |= in_keras_layout(name, weights)
    gradients = {key: weight.grad for key, weight in weights.items()}
    gradients = in_keras_layout(name, gradients) | {"inputs": x.grad}
    arrays |= {f"gradient:{key}": g for key, g in gradients.items()}
    np.savez(out, **{key: a.detach().numpy() for key, a in arrays.items()})


def run_switch(out):
    """Run Switch Transformers' block with 2 rows per expert and sequence."""
    torch.manual_seed(0)
    config = SwitchTransformersConfig(
        d_model=D, d_ff=F, num_experts=E, expert_capacity=2
    )
    block = switch_transformers.SwitchTransformersSparseMLP(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 17, D, requires_grad=True)
    upstream = torch.randn(3, 17, D)
    y = block(x)
    (y * upstream).sum().backward()
    arrays = {"x": x, "upstream": upstream, "y": y, "gradient:inputs": x.grad}
    for prefix in ("", "gradient:"):
        weights = {
            name: (p.grad if prefix else p).T
            for name, p in block.named_parameters()
        }
        arrays[f"{prefix}router/kernel"] = weights["router.classifier.weight"]
        for name, theirs in (("up", "wi"), ("down", "wo")):
            each = [
                weights[f"experts.expert_{e}.{theirs}.weight"] for e in range(E)
            ]
            arrays[f"{prefix}experts/{name}_kernel"] = torch.stack(each)
    np.savez(out, **{n: a.detach().numpy() for n, a in arrays.items()})


def main(out, *names):
    for name in names:
        if name == "switch":
            run_switch(f"{out}/{name}.npz")
        else:
            run(name, f"{out}/{name}.npz")
