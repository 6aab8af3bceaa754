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
from transformers.models.mistral4 import modeling_mistral4

T, D, E, K = 40, 16, 12, 3
GROUPS = {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}
CONFIG = {
    "hidden_size": D,
    "num_experts": E,
    "num_local_experts": E,
    "num_experts_per_tok": K,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    **GROUPS,
}
ROUTERS = {
    "deepseek_v2": modeling_deepseek_v2.DeepseekV2TopkRouter,
    "mistral4": modeling_mistral4.Mistral4TopkRouter,
}
# The names of keras_moe's weights, and whether the layout is transposed.
NAMES = {"weight": ("kernel", True)}


def renamed(parameters):
    """Return arrays by keras_moe's names, in its layout."""
    found = {}
    for name, value in parameters.items():
        new, transposed = NAMES[name]
        found[new] = value.T if transposed else value
    return found


def table(weights, index, columns):
    """Return the weights `(T, K)` of each choice as `(T, columns)`."""
    empty = torch.zeros(len(weights), columns)
    return empty.scatter(1, index, weights)


def run(name, out):
    torch.manual_seed(0)
    router = ROUTERS[name](SimpleNamespace(**CONFIG))
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(T, D, requires_grad=True)
    _, weights, index = router(x)
    y = table(weights, index, E)
    upstream = torch.randn(y.shape)
    (y * upstream).sum().backward()
    parameters = dict(router.named_parameters())
    gradients = {n: p.grad for n, p in parameters.items()}
    arrays = {"x": x, "y": y, "upstream": upstream, "gradient:inputs": x.grad}
    arrays |= {f"weight:{n}": p for n, p in renamed(parameters).items()}
    arrays |= {f"gradient:{n}": g for n, g in renamed(gradients).items()}
    np.savez(out, **{n: a.detach().numpy() for n, a in arrays.items()})


def main(out, *names):
    for name in names:
        run(name, f"{out}/{name}.npz")
