"""Compute entropies in NumPy."""

import numpy as np


def entropy(p):
    """Return the entropy over the last axis, in nats."""
    p = np.asarray(p, "float64")
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def entropies_of(probs, ids, number, mask):
    """Return mean entropy and entropy of the mean per modality, `(M,)` each."""
    local, spread = np.zeros(number), np.zeros(number)
    for m in range(number):
        rows = probs[(ids == m) & mask]
        if len(rows):
            local[m] = entropy(rows).mean()
            spread[m] = entropy(rows.mean(0))
    return local, spread
