"""Compute a naive MoE block and its gradient in NumPy, as the reference.

T tokens, D hidden_dim, E experts, K top_k.
"""

from typing import NamedTuple

import numpy as np


class Reference(NamedTuple):
    """Outputs and gradients of the naive block.

    y, dx: `(T, D)`.
    norm: float. Norm of the gradients of all weights together.
    """

    y: np.ndarray
    dx: np.ndarray
    norm: float


def reference(problem):
    """Compute the block and its gradient, one expert after the other.

    The weights of a token's K experts are the softmax over their logits;
    with K = 1, the softmax over all experts (Fedus et al. 2021, eq. 2).
    """
    x, dy, chosen = problem.x, problem.dy, problem.chosen
    probs, own = _weights(problem)
    y, dx, d_own = np.zeros_like(x), np.zeros_like(x), np.zeros_like(own)
    squares = 0.0
    for e in range(problem.shape.E):
        token, k = np.nonzero(chosen == e)
        rows, weight = x[token], own[token, k][:, None]
        gate, up = rows @ problem.gate[e], rows @ problem.up[e]
        sigmoid = 1 / (1 + np.exp(-gate))
        hidden = gate * sigmoid * up
        out = hidden @ problem.down[e]
        y[token] += weight * out
        d_out = weight * dy[token]
        d_own[token, k] = (dy[token] * out).sum(-1)
        d_hidden = d_out @ problem.down[e].T
        d_up = d_hidden * gate * sigmoid
        d_gate = d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid))
        dx[token] += d_gate @ problem.gate[e].T + d_up @ problem.up[e].T
        for a, b in ((rows, d_gate), (rows, d_up), (hidden, d_out)):
            squares += _square_of_product(a, b)
    d_logits = _d_logits(probs, own, d_own, chosen)
    dx += d_logits @ problem.router.T
    squares += float(np.square(x.T @ d_logits, dtype="float64").sum())
    return Reference(y, dx, squares**0.5)


def _weights(problem):
    """Return the probabilities `(T, E)` and the combine weights `(T, K)`."""
    logits = problem.x @ problem.router
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    own = np.take_along_axis(probs, problem.chosen, axis=-1)
    if problem.shape.K > 1:
        own = own / own.sum(-1, keepdims=True)
    return probs, own


def _d_logits(probs, own, d_own, chosen):
    """Return the gradient of the logits, through the softmax."""
    weighted = own * (d_own - (own * d_own).sum(-1, keepdims=True))
    if chosen.shape[1] > 1:
        d_logits = np.zeros_like(probs)
    else:
        weighted = own * d_own
        d_logits = -probs * weighted
    before = np.take_along_axis(d_logits, chosen, axis=-1)
    np.put_along_axis(d_logits, chosen, before + weighted, axis=-1)
    return d_logits


def _square_of_product(a, b):
    """Return the squared norm of `a^T b`.

    If there are few rows, this does not compute `a^T b` itself.
    """
    if len(a) < min(a.shape[1], b.shape[1]):
        return float(((a @ a.T) * (b @ b.T)).sum(dtype="float64"))
    return float(np.square(a.T @ b).sum(dtype="float64"))
