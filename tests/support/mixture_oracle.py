"""Compute expert banks and mixtures in NumPy, without the package's code."""

import numpy as np
from backend import to_numpy


def expert(bank, e, x):
    """Return the output of ReLU expert e for rows `(R, D)`."""
    hidden = x @ to_numpy(bank.up_kernel)[e] + to_numpy(bank.up_bias)[e]
    down = to_numpy(bank.down_kernel)[e]
    return np.maximum(hidden, 0) @ down + to_numpy(bank.down_bias)[e]


def softmax(logits, axis=-1):
    """Return the softmax along one axis."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def mixture(experts, weights):
    """Return the sum of E outputs `(R, H)`, weighted by `(R, E)`."""
    return sum(weights[:, [e]] * y for e, y in enumerate(experts))


def randomize(layer, rng):
    """Assign random values to every trainable weight, including biases."""
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32"))
    return layer
