"""TensorFlow on one thread of an AVX2 CPU: tiles of rows, wider matrices.

P rows, sorted by group; E groups; D input and F output width. A tile is up to
`TILE` rows of one group, whose hidden units stay in the cache. Where no group
has more, the groups are unrolled: as fast as a loop at E = 8, up to 5 % faster
at 64, and at E = 128 and D = F = 512 5 to 14 %. Else it is a loop. As
in `tensorflow_loop.py` both are one function that blocks of one shape share.

On one thread TensorFlow multiplies few rows (at F = 1024 up to 353) without
packing the matrix. Where F is a multiple of 512 its rows then lie a multiple of
2 KB apart and push each other out of the cache, so that an expert takes less
time with copies of its matrices that have `MORE` columns, the copying included:
with 32, 64 and 256 rows 0.72, 0.66 and 0.61 of it at F = 1024, and 0.88, 0.83
and 0.75 at F = 512 (D = 512; `benchmarks/wider.py`). One expert with 60 % of
M's rows: 0.89 times `limit` forward, for 1.07 with a tile an expert. Where a
tape records, all is `tensorflow_split.py`'s.
"""

import tensorflow as tf
from tensorflow.python.eager import record

from keras_moe.kernels import tensorflow_split
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.tensorflow_groups import Groups, for_each, rows_of
from keras_moe.kernels.tensorflow_loop import traced_once
from keras_moe.types import Activation, Tensor

TILE = 512
MORE = 16
ROWS = 32  # with fewer it depends on F: 24 take 0.85 to 1.00
SLOW = 512  # columns of which a multiple is slow: 640, 768 and 1408 are not


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    if record.could_possibly_record():
        return tensorflow_split.grouped_matmul(x, kernel, group_sizes)
    kernel = tf.convert_to_tensor(kernel)
    width = kernel.shape[-1]
    return traced_once(_matmul, (width,), x, [kernel], group_sizes, width)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one tile before the next one's."""
    if record.could_possibly_record():
        return tensorflow_split.grouped_ffn(
            x, weights, group_sizes, activation, remat
        )
    names = tuple(n for n, w in weights._asdict().items() if w is not None)
    banks = [tf.convert_to_tensor(getattr(weights, name)) for name in names]
    width = weights.down_kernel.shape[-1]
    static = (names, activation, width)
    return traced_once(_ffn, static, x, banks, group_sizes, width)


def _matmul(width):
    return lambda x, banks, sizes: _map(_linear, x, banks, sizes, width)


def _ffn(names, activation, width):
    def network(rows, paddings, *slices):
        own = FFNWeights(**dict(zip(names, slices, strict=True)))

        def linear(x, kernel, bias):
            y = _linear(x, paddings, kernel)
            return y if bias is None else y + bias

        return ffn(rows, own, activation, linear)

    return lambda x, banks, sizes: _map(network, x, banks, sizes, width)


def _map(network, x, banks, sizes, width):
    """Calls `network(rows, paddings, *slices)` for each tile, in order:
    (P, width)."""
    return tf.cond(
        tf.reduce_max(sizes) <= TILE,
        lambda: _unrolled(network, x, banks, sizes, width),
        lambda: _looped(network, x, banks, sizes, width),
    )


def _unrolled(network, x, banks, sizes, width):
    """One tile a group."""
    outputs = []

    def in_turn(*args):
        # Else all matrices may be copied before the first is multiplied.
        with tf.control_dependencies(outputs[-2:-1]):
            outputs.append(network(*args))
        return outputs[-1]

    banks = [_paddings(sizes), *banks]
    return tensorflow_split.map_groups(in_turn, x, banks, sizes, width)


def _looped(network, x, banks, sizes, width):
    """As many tiles as the rows need."""
    owners, starts, lengths = _tiles(sizes)
    every = tf.range(tf.shape(owners)[0])
    tiles = Groups(every, every[:0], starts, lengths)
    paddings = _paddings(lengths)

    def visit(t):
        slices = [bank[owners[t]] for bank in banks]
        return [network(rows_of(x, tiles, t), paddings[t], *slices)], []

    (y,), _ = for_each(tiles, visit, x, [width])
    return y


def _tiles(sizes):
    """Group, first row and number of rows of each tile; as equal as may be."""
    tiles = -(-sizes // TILE)
    each = -(-sizes // tf.maximum(tiles, 1))
    owners = tf.repeat(tf.range(sizes.shape[0]), tiles)

    def own(values):
        return tf.gather(values, owners)

    number = tf.range(tf.shape(owners)[0]) - own(_before(tiles))
    done = number * own(each)
    lengths = tf.minimum(own(each), own(sizes) - done)
    return owners, own(_before(sizes)) + done, lengths


def _before(counts):
    return tf.cumsum(counts, exclusive=True)


def _paddings(lengths):
    """`tf.pad`'s of a matrix for so many rows: (., 2, 2)."""
    more = tf.where(lengths >= ROWS, MORE, 0)
    return tf.pad(more[:, None, None], [[0, 0], [1, 0], [1, 0]])


def _linear(x, paddings, kernel):
    """`x kernel`; `tf.pad` copies nothing where there is none."""
    width = kernel.shape[-1]
    if width % SLOW:
        return tf.matmul(x, kernel)
    y = tf.matmul(x, tf.pad(kernel, paddings))
    return tf.slice(y, [0, 0], [-1, width])
