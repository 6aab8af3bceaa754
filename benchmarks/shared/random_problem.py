"""Weights and tokens of one shape, and the naive reference in NumPy.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, P = T * K.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

MARGIN = 0.04  # between the last expert chosen and the first one not
SKEWED_SHARE = 0.6


class Problem(NamedTuple):
    """Everything a contestant is given, float32 (rounded to `dtype`).

    x, dy: `(T, D)`, the tokens and the gradient of the outputs.
    router: `(D, E)`. gate, up: `(E, D, F)`. down: `(E, F, D)`.
    chosen: int `(T, K)`, each token's experts. counts: rows of each expert.
    """

    shape: tuple
    dtype: str
    x: np.ndarray
    dy: np.ndarray
    router: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    chosen: np.ndarray
    counts: np.ndarray

    @property
    def pair_rows(self):
        """Each pair's token, sorted by expert: `(P, D)`."""
        order = np.argsort(self.chosen.ravel(), kind="stable")
        return self.x[order // self.shape.K]

    @property
    def imbalance(self):
        """The fullest expert's pairs over the mean."""
        return float(self.counts.max() / self.counts.mean())


def draw(shape, dtype="float32", seed=0):
    """Draws a problem.

    Weights and tokens are normal, which routes about evenly. Tokens whose
    choice hangs on a rounding error (see `MARGIN`) are drawn again, so that
    all contestants route alike in every dtype. Where `shape.skewed`, a
    feature of the tokens sends 60 % of them to expert 0 and the rest
    elsewhere.
    """
    rng = np.random.default_rng(seed)

    def normal(*size, fan_in):
        values = rng.standard_normal(size, dtype="float32")
        values /= np.float32(np.sqrt(fan_in))
        return _rounded(values, dtype)

    _, D, F, E, _, skewed = shape
    router = normal(D, E, fan_in=D)
    if skewed:
        router[0] = 0
        router[0, 0] = 16
    x, chosen = _tokens(rng, router, shape, dtype)
    return Problem(
        shape,
        dtype,
        x,
        normal(shape.T, D, fan_in=1),
        router,
        normal(E, D, F, fan_in=D),
        normal(E, D, F, fan_in=D),
        normal(E, F, D, fan_in=F),
        chosen,
        np.bincount(chosen.ravel(), minlength=E),
    )


def _tokens(rng, router, shape, dtype):
    """Draws T tokens with a clear choice; returns them and their experts."""
    T, D, _, E, K, skewed = shape
    kept = []
    while sum(map(len, kept)) < T:
        x = rng.standard_normal((2 * T + 8, D), dtype="float32")
        if skewed:
            x[:, 0] = -1
            x[: round(SKEWED_SHARE * T), 0] = 1
        x = _rounded(x, dtype)
        if K < E:
            ranked = np.sort(x @ router, axis=-1)
            x = x[ranked[:, -K] - ranked[:, -K - 1] > MARGIN]
        kept.append(x)
    x = np.concatenate(kept)[:T]
    chosen = np.argsort(-(x @ router), axis=-1, kind="stable")[:, :K]
    return np.ascontiguousarray(x), chosen


def _rounded(values, dtype):
    if dtype == "float32":
        return values
    return values.astype(getattr(ml_dtypes, dtype)).astype("float32")


class Reference(NamedTuple):
    """The naive block's outputs and gradients.

    y, dx: `(T, D)`. norm: of the gradients of all weights together.
    """

    y: np.ndarray
    dx: np.ndarray
    norm: float


def reference(problem):
    """Runs the block and its gradient, one expert after the other.

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
    """Returns the probabilities `(T, E)` and the combine weights `(T, K)`."""
    logits = problem.x @ problem.router
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    own = np.take_along_axis(probs, problem.chosen, axis=-1)
    if problem.shape.K > 1:
        own = own / own.sum(-1, keepdims=True)
    return probs, own


def _d_logits(probs, own, d_own, chosen):
    """Back through the softmax, over the chosen or (K = 1) over all."""
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
    """The squared norm of `a^T b`, without it where the rows are few."""
    if len(a) < min(a.shape[1], b.shape[1]):
        return float(((a @ a.T) * (b @ b.T)).sum(dtype="float64"))
    return float(np.square(a.T @ b).sum(dtype="float64"))
