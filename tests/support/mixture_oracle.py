"""Expert banks and mixtures in NumPy, apart from the package's formulas."""

import numpy as np
from backend import to_numpy


def expert(bank, e, x):
    """What ReLU expert e makes of rows `(R, D)`."""
    hidden = x @ to_numpy(bank.up_kernel)[e] + to_numpy(bank.up_bias)[e]
    down = to_numpy(bank.down_kernel)[e]
    return np.maximum(hidden, 0) @ down + to_numpy(bank.down_bias)[e]


def softmax(logits, axis=-1):
    """Along one axis."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def mixture(experts, weights):
    """The weighted sum of E outputs `(R, H)`, by weights `(R, E)`."""
    return sum(weights[:, [e]] * y for e, y in enumerate(experts))


def randomize(layer, rng):
    """Gives every trainable weight, biases too, random values."""
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32"))
    return layer
