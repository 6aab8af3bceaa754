"""Compute a block's outputs token by token, in NumPy's float64."""

import numpy as np


def block_outputs(block, x, top_k=2):
    """Return the outputs of a `MoEBlock` with ReLU experts and no capacity.

    Args:
        block: Built `MoEBlock` with a softmax router, biases, and no shared
            expert.
        x: Array of shape `(..., D)`.
        top_k: Number of experts per token.
    """
    tokens = np.asarray(x, "float64").reshape(-1, np.shape(x)[-1])
    kernel = np.asarray(block.router.kernel.numpy(), "float64")
    outputs = np.stack([_one(block, t, t @ kernel, top_k) for t in tokens])
    return outputs.reshape(np.shape(x))


def _one(block, token, logits, top_k):
    chosen = np.argsort(-logits, kind="stable")[:top_k]
    gates = np.exp(logits[chosen] - logits[chosen].max())
    gates /= gates.sum()
    up, up_bias, down, down_bias = (
        np.asarray(weight.numpy(), "float64")
        for weight in (
            block.experts.up_kernel,
            block.experts.up_bias,
            block.experts.down_kernel,
            block.experts.down_bias,
        )
    )
    hidden = [np.maximum(token @ up[e] + up_bias[e], 0) for e in chosen]
    outputs = [
        h @ down[e] + down_bias[e] for h, e in zip(hidden, chosen, strict=True)
    ]
    return sum(g * y for g, y in zip(gates, outputs, strict=True))


def normalized(x, epsilon=1e-3):
    """Return Keras's `LayerNormalization` of `x`, with initial weights."""
    x = np.asarray(x, "float64")
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
