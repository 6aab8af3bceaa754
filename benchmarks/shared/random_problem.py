"""Draw the weights and tokens of one shape, shared by all contestants.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, P = T * K.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

MARGIN = 0.04  # between the logits of the last expert chosen and the next
SKEWED_SHARE = 0.6


class Problem(NamedTuple):
    """The weights and tokens of one shape, in float32 (rounded to `dtype`).

    shape: `shapes.Shape`.
    dtype: str. The precision of the values.
    x, dy: `(T, D)`. The tokens and the gradient of the outputs.
    router: `(D, E)`.
    gate, up: `(E, D, F)`.
    down: `(E, F, D)`.
    chosen: int `(T, K)`. Experts of each token.
    counts: int `(E,)`. Rows of each expert.
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
        """Return the token of each pair, sorted by expert: `(P, D)`."""
        order = np.argsort(self.chosen.ravel(), kind="stable")
        return self.x[order // self.shape.K]

    @property
    def imbalance(self):
        """Return the pairs of the fullest expert, divided by the mean."""
        return float(self.counts.max() / self.counts.mean())


def draw(shape, dtype="float32", seed=0):
    """Draw a problem.

    Weights and tokens are normally distributed, so the load is nearly even.
    Tokens whose choice depends on a rounding error (see `MARGIN`) are drawn
    again, so that all contestants route alike in every dtype. If
    `shape.skewed`, a feature of the tokens sends 60% of them to expert 0 and
    the rest to other experts.
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
    """Return T tokens with an unambiguous choice, and their experts."""
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
