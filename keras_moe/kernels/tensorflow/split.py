"""TensorFlow: split by counts, one network per expert.

P rows, sorted by group; E groups; D input and F output width. `tf.split` and
`tf.unstack` along the first axis share their input's buffer, and a matmul of
no rows costs nothing, so that the cost follows the number of rows. It uses no
loop and no operation that LiteRT lacks, so that exported models use it. If a
tape records, the networks are those of `one_expert.py`; the gradients of the
experts' parts are stacked, and can be differentiated again.

The weights must reach `tf.unstack` as tensors: a `tf.gather` from a variable
anywhere would turn every later read of that variable into a copy.
"""

from collections.abc import Callable, Iterable

import tensorflow as tf

from keras_moe._tensorflow import is_recorded
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.tensorflow import one_expert as one
from keras_moe.kernels.tensorflow.gated_units import light_activation
from keras_moe.types import Activation, GatedUnit, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    return map_groups(tf.matmul, x, [kernel], group_sizes, kernel.shape[-1])


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network of one expert before that of the next one."""
    banks = {n: w for n, w in weights._asdict().items() if w is not None}
    is_unit = isinstance(activation, GatedUnit)
    light = light_activation(activation) if is_unit else activation

    def predicted(rows: Tensor, *slices: Tensor) -> Tensor:
        own = FFNWeights(**dict(zip(banks, slices, strict=True)))
        return ffn(rows, own, light)

    expert = predicted
    if is_recorded():
        with_gradient = one.recomputed if remat else one.trained
        expert = with_gradient(activation, tuple(banks))
    width = weights.down_kernel.shape[-1]
    return map_groups(expert, x, banks.values(), group_sizes, width)


def map_groups(
    expert: Callable[..., Tensor],
    x: Tensor,
    banks: Iterable[Tensor],
    group_sizes: Tensor,
    width: int,
) -> Tensor:
    """Call `expert(rows, *slices)` for each group, in order: `(P, width)`."""
    num_groups = group_sizes.shape[0]
    rest = tf.shape(x)[0] - tf.reduce_sum(group_sizes)
    sizes = tf.concat([group_sizes, rest[None]], axis=0)
    parts = tf.split(x, sizes, axis=0, num=num_groups + 1)
    slices = [tf.unstack(bank, num_groups) for bank in banks]
    outputs = [
        expert(parts[e], *(s[e] for s in slices)) for e in range(num_groups)
    ]
    return tf.concat([*outputs, tf.zeros((rest, width), x.dtype)], axis=0)
