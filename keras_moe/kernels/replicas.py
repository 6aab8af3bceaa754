"""Sums and means over the replicas of a data-parallel step.

On JAX one program computes the whole batch, however it is sharded, so that
there is one replica. On PyTorch every process is a replica; on TensorFlow the
strategy has replicas. Every replica of a step must make these calls, in the
same order.
"""

import math

from keras_moe.kernels.backend import backend
from keras_moe.kernels.row_ops import light_ops
from keras_moe.types import Tensor

# The running backend's function, which `protocol/` describes.
sum_over_replicas = backend.sum_over_replicas


def mean_of_units(total: Tensor, count: Tensor, over_replicas: bool) -> Tensor:
    """Return the mean over this replica's units, or over all replicas'.

    Args:
        total: float32, any static shape. The sum over this replica's units.
        count: float32, broadcastable to `total`. The number of these units;
            without one the mean is zero.
        over_replicas: Whether to take the mean by `mean_over_replicas`.
    """
    if over_replicas:
        return mean_over_replicas(total, count)
    return total / light_ops.maximum(count, 1.0)


def mean_over_replicas(total: Tensor, count: Tensor) -> Tensor:
    """Return the mean over all replicas' units, from sums over each one's.

    With `R` replicas the value is `sum_r total_r / max(sum_r count_r, 1)`,
    the same on each. The gradient is that of `R * total_r / max(sum_r count_r,
    1)`: a data-parallel step averages the replicas' gradients, and the average
    is the gradient of the batches of all replicas together. A mean of the
    replicas' own means would give more weight to tokens of a replica with more
    padding.

    Args:
        total: float32, any static shape. The sum over this replica's units
            (tokens, or sequences).
        count: float32, broadcastable to `total`. The number of these units,
            without gradient.
    """
    replicas = backend.num_replicas()
    if replicas == 1:
        return mean_of_units(total, count, False)
    size = math.prod(total.shape)
    parts = [light_ops.reshape(x, (-1,)) for x in (total, count)]
    own_sums = light_ops.stop_gradient(light_ops.concatenate(parts))
    sums = sum_over_replicas(own_sums)
    count = light_ops.maximum(light_ops.reshape(sums[size:], count.shape), 1.0)
    mean = light_ops.reshape(sums[:size], total.shape) / count
    own = replicas * total / count
    return own + light_ops.stop_gradient(mean - own)
