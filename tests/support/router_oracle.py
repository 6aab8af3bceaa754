"""Run the routers of Hugging Face transformers on random weights.

The script runs in a PyTorch process, because the test run may use another
backend. It writes NAME.npz into the folder OUT: inputs `x` `(T, D)`, the
weights with keras_moe's names and layout, the combine weights as a table `y`
`(T, E + N)`, and the gradients of the table's sum weighted by `upstream`.
"""

from types import SimpleNamespace

import numpy as np
import torch
from transformers.models.deepseek_v2 import modeling_deepseek_v2
from transformers.models.deepseek_v4 import modeling_deepseek_v4
from transformers.models.gemma4 import modeling_gemma4
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.laguna import modeling_laguna
from transformers.models.mistral4 import modeling_mistral4
from transformers.models.phimoe import modeling_phimoe

T, D, E, K = 40, 16, 12, 3
GROUPS = {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}
CONFIG = {
    "hidden_size": D,
    "num_experts": E,
    "num_local_experts": E,
    "num_experts_per_tok": K,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sqrtsoftplus",
    "moe_router_logit_softcapping": 1.5,
    "rms_norm_eps": 1e-3,
    "top_k_experts": K,
    "router_jitter_noise": 0.3,
    "input_jitter_noise": 0.0,
    **GROUPS,
}
ROUTERS = {
    "deepseek_v2": modeling_deepseek_v2.DeepseekV2TopkRouter,
    "deepseek_v4": modeling_deepseek_v4.DeepseekV4TopKRouter,
    "gemma4": modeling_gemma4.Gemma4TextRouter,
    "gpt_oss": modeling_gpt_oss.GptOssTopKRouter,
    "laguna": modeling_laguna.LagunaTopKRouter,
    "mistral4": modeling_mistral4.Mistral4TopkRouter,
    "phimoe": modeling_phimoe.PhimoeTopKRouter,
    "phimoe_training": modeling_phimoe.PhimoeTopKRouter,
}
# The names of keras_moe's weights, and whether the layout is transposed.
NAMES = {
    "weight": ("kernel", True),
    "bias": ("bias", False),
    "e_score_correction_bias": ("expert_bias_weight", False),
    "proj.weight": ("kernel", True),
    "scale": ("input_scale", False),
    "per_expert_scale": ("expert_scale_weight", False),
}


def renamed(arrays):
    """Return arrays by keras_moe's names, in its layout; not those of None."""
    found = {}
    for name, value in arrays.items():
        if value is not None:
            new, transposed = NAMES[name]
            found[new] = value.T if transposed else value
    return found


def table(weights, index, columns):
    """Return the weights `(T, K)` of each choice as `(T, columns)`."""
    empty = torch.zeros(len(weights), columns)
    return empty.scatter(1, index, weights)


def drawn():
    """Return the random numbers that Phi-MoE's router draws in training."""
    torch.manual_seed(1)
    noise, draw = [], []
    for choice in range(2):
        noise.append(-torch.empty(T, E).exponential_().log())
        draw.append(torch.rand(T, 1))
        if choice == 1:
            draw[1].uniform_()
    torch.manual_seed(1)
    return {"noise": torch.stack(noise), "draw": torch.cat(draw, -1)}


def run(name, out):
    torch.manual_seed(0)
    router = ROUTERS[name](SimpleNamespace(**CONFIG))
    router.train(name == "phimoe_training")
    parameters = dict(router.named_parameters())
    weights_of = parameters | dict(router.named_buffers())
    for weight in weights_of.values():
        torch.nn.init.normal_(weight, std=0.3)
    x = torch.randn(T, D, requires_grad=True)
    draws = drawn() if router.training else {}
    _, weights, index = router(x)
    y = table(weights, index, E)
    upstream = torch.randn(y.shape)
    (y * upstream).sum().backward()
    gradients = {n: p.grad for n, p in parameters.items()}
    arrays = {"x": x, "y": y, "gradient:inputs": x.grad} | draws
    arrays["upstream"] = upstream
    arrays |= {f"weight:{n}": w for n, w in renamed(weights_of).items()}
    arrays |= {f"gradient:{n}": g for n, g in renamed(gradients).items()}
    np.savez(out, **{n: a.detach().numpy() for n, a in arrays.items()})


def main(out, *names):
    for name in names:
        run(name, f"{out}/{name}.npz")
