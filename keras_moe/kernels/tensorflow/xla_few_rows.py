"""TensorFlow under XLA on CPU, few rows per expert: products without copies.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

`jax/few_rows.py` is the same for JAX, and describes why a product is a sum of
multiples of a matrix's rows. If a tape records, `xla_blocks.py` runs instead.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from keras_moe._tensorflow import is_recorded, xla_slice
from keras_moe.kernels.block_sizes import few_rows_size
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.tensorflow import xla_blocks
from keras_moe.kernels.tensorflow.one_expert import wide_dtype
from keras_moe.kernels.tensorflow.xla_loop import Block, map_blocks
from keras_moe.types import Activation, Tensor

AT_ONCE = 8  # rows of a matrix per step


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    if not _only_predicts(x):
        return xla_blocks.grouped_matmul(x, kernel, group_sizes)
    bank = tf.convert_to_tensor(kernel)

    def block(
        rows: Sequence[Tensor], own: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [_product(rows[0], bank, own[0])], []

    return _map(block, x, group_sizes, kernel.shape[-1])


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network on one block before the next block."""
    if not _only_predicts(x):
        return xla_blocks.grouped_ffn(
            x, weights, group_sizes, activation, remat
        )
    banks = FFNWeights(
        *(None if w is None else tf.convert_to_tensor(w) for w in weights)
    )

    def linear(
        expert: Tensor, rows: Tensor, bank: Tensor, bias: Tensor | None
    ) -> Tensor:
        y = _product(rows, bank, expert)
        return y if bias is None else y + tf.gather(bias, expert)

    def block(
        rows: Sequence[Tensor], own: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [ffn(rows[0], banks, activation, partial(linear, own[0]))], []

    return _map(block, x, group_sizes, weights.down_kernel.shape[-1])


def _only_predicts(x: Tensor) -> bool:
    """Return whether no gradient is recorded and P is known."""
    return x.shape[0] is not None and not is_recorded()


def _map(block: Block, x: Tensor, group_sizes: Tensor, width: int) -> Tensor:
    """Run `map_blocks` with the expert's number instead of its weights."""
    num_groups = group_sizes.shape[0]
    sizes = (few_rows_size(x.shape[0], num_groups),)
    experts = tf.range(num_groups)
    (y,), _ = map_blocks(
        block, [x], [experts], group_sizes, [width], sizes=sizes
    )
    return y


def _product(rows: Tensor, bank: Tensor, expert: Tensor) -> Tensor:
    """Return `rows @ bank[expert]`, `(B, F)`, a few matrix rows at a time."""
    _, depth, width = bank.shape
    wide = wide_dtype(rows.dtype)

    def add(y: Tensor, start: Any, count: int) -> Tensor:
        for d in range(count):
            row = xla_slice(
                bank, tf.stack([expert, start + d, 0]), [1, 1, width]
            )
            column = xla_slice(
                rows, tf.stack([0, start + d]), [rows.shape[0], 1]
            )
            y = y + tf.cast(column, wide) * tf.cast(row[0], wide)
        return y

    _, y = tf.while_loop(
        lambda i, y: i < depth // AT_ONCE,
        lambda i, y: (i + 1, add(y, i * AT_ONCE, AT_ONCE)),
        (tf.constant(0), tf.zeros((rows.shape[0], width), wide)),
    )
    rest = depth % AT_ONCE
    return tf.cast(add(y, depth - rest, rest), rows.dtype)
