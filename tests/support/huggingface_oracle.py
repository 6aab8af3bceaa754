"""Run Hugging Face's MoE blocks on random weights.

The script runs in a PyTorch process, because the test run may use another
backend. It writes NAME.npz into the folder OUT: inputs, weights (with
keras_moe's names and layout), the output, and the gradients of the output's
sum weighted by `upstream`.
"""

import numpy as np
import torch
from transformers import (
    DeepseekV3Config,
    Llama4TextConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SwitchTransformersConfig,
)
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
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

D, F, E = 16, 24, 8


def build(name):
    sizes = {"hidden_size": D, "hidden_act": "silu"}
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


def in_keras_layout(router, gate_up, down):
    """Transpose kernels of shape (out, in), and split gate and up."""
    gate, up = gate_up[:, :F], gate_up[:, F:]
    return {
        "router/kernel": router.T,
        "experts/gate_kernel": gate.transpose(1, 2),
        "experts/up_kernel": up.transpose(1, 2),
        "experts/down_kernel": down.transpose(1, 2),
    }


def shared_in_keras_layout(gradients, parameters):
    """Return the shared expert's kernels as a bank, and its gate, if any."""
    found = {}
    for key, parameter in parameters.items():
        if not key.startswith("shared_expert"):
            continue
        value = (parameter.grad if gradients else parameter).T
        name = key.split(".")[-2].removesuffix("_proj")
        if name == "shared_expert_gate":
            found["shared_expert_gate/kernel"] = value
        else:
            found[f"shared_expert/{name}_kernel"] = value[None]
    return found


def run(name, out):
    torch.manual_seed(0)
    block = build(name)
    parameters = dict(block.named_parameters())
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.3)
    gate = "router" if name == "llama4" else "gate"
    bias = torch.zeros(E)
    bias = getattr(getattr(block, gate), "e_score_correction_bias", bias)
    bias.copy_(torch.linspace(-0.2, 0.2, E))
    order = (f"{gate}.weight", "experts.gate_up_proj", "experts.down_proj")
    weights = [parameters[n] for n in order]
    x = torch.randn(3, 11, D, requires_grad=True)
    upstream = torch.randn(3, 11, D)
    y = block(x)
    if name == "llama4":  # flat outputs, and the logits
        y = y[0].reshape(x.shape)
    (y * upstream).sum().backward()
    arrays = {"x": x, "upstream": upstream, "y": y, "gradient:inputs": x.grad}
    gradients = [w.grad for w in weights]
    if name == "llama4":  # the kernels of its experts are (in, out)
        weights[1:] = [w.transpose(1, 2) for w in weights[1:]]
        gradients[1:] = [w.transpose(1, 2) for w in gradients[1:]]
    arrays |= in_keras_layout(*weights)
    gradients = in_keras_layout(*gradients)
    arrays |= {"expert_bias": bias} | shared_in_keras_layout(False, parameters)
    gradients |= shared_in_keras_layout(True, parameters)
    arrays |= {f"gradient:{name}": g for name, g in gradients.items()}
    np.savez(out, **{n: a.detach().numpy() for n, a in arrays.items()})


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
