"""Functions of attention: rotary positions and grouped heads.

B batch, S queries, L keys, N heads, G key and value heads, H head_dim.
"""

import math

import numpy as np
from keras import ops

from keras_moe.routing.assignment import softmax
from keras_moe.types import Tensor

WAVELENGTH = 10000.0
MASKED = -1e30  # finite, so that a row without any key is not NaN


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate pairs of coordinates by angles that grow with the position (RoPE).

    Pair i of a token at position m is rotated by `m * 10000 ** (-2 i / H)`, so
    that the product of a query and a key depends on the difference of their
    positions. Pair i consists of the coordinates i and `i + H / 2`, as in
    GPT-NeoX and Llama; the paper pairs `2 i` and `2 i + 1`, which differs only
    in the order of learned coordinates.

    Args:
        x: Float tensor of shape `(B, S, N, H)`, H even.
        positions: Int tensor of shape `(S,)`.

    Returns:
        Tensor of shape `(B, S, N, H)` and the dtype of `x`, computed in
        float32.

    Reference: Su et al. 2021, "RoFormer", eq. 34.
    """
    half = x.shape[-1] // 2
    frequencies = WAVELENGTH ** (-np.arange(half, dtype="float64") / half)
    angles = ops.expand_dims(ops.cast(positions, "float32"), -1)
    angles = angles * ops.convert_to_tensor(frequencies.astype("float32"))
    cos, sin = (ops.expand_dims(f(angles), 1) for f in (ops.cos, ops.sin))
    wide = ops.cast(x, "float32")
    first, second = wide[..., :half], wide[..., half:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return ops.cast(ops.concatenate(turned, axis=-1), x.dtype)


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, readable: Tensor | None = None
) -> Tensor:
    """Compute `softmax(q k^T / sqrt(H)) v` with `N / G` heads per key head.

    Head n reads key head `n // (N / G)`. The softmax is computed in float32.
    The output for a query that may read no key is an arbitrary mean of the
    values.

    Args:
        query: Float tensor of shape `(B, S, N, H)`.
        key, value: Float tensors of shape `(B, L, G, H)`, G a divisor of N.
        readable: Bool tensor that broadcasts to `(B, N, S, L)`, True for keys
            that may be read. `None` (the default) reads all keys.

    Returns:
        Tensor of shape `(B, S, N, H)`.

    Reference: Vaswani et al. 2017, "Attention Is All You Need", eq. 1; Ainslie
    et al. 2023, "GQA", section 2.2.
    """
    num_heads, head_dim = query.shape[2:]
    groups = key.shape[2]
    queries, keys = ops.shape(query)[1], ops.shape(key)[1]
    # The query heads of a group become one axis, so that keys are not copied.
    stacked = (-1, groups, num_heads // groups * queries, head_dim)
    rows = ops.reshape(ops.transpose(query, (0, 2, 1, 3)), stacked)
    scores = ops.cast(ops.einsum("bgsh,blgh->bgsl", rows, key), "float32")
    scores = ops.reshape(scores, (-1, num_heads, queries, keys))
    scores = scores / math.sqrt(head_dim)
    if readable is not None:
        scores = ops.where(readable, scores, MASKED)
    weights = ops.cast(softmax(scores), value.dtype)
    weights = ops.reshape(weights, (*stacked[:3], keys))
    outputs = ops.einsum("bgsl,blgh->bgsh", weights, value)
    outputs = ops.reshape(outputs, (-1, num_heads, queries, head_dim))
    return ops.transpose(outputs, (0, 2, 1, 3))
