"""Sizes of the blocks of rows in the loops that XLA compiles."""

import math

from keras_moe.types import Tensor

SHARES = (0.5, 0.75, 0.9, 1.05, 1.2, 1.5)
UNKNOWN_P_SIZES = (8, 32, 128)


def block_sizes(num_rows: int | Tensor, num_groups: int) -> tuple[int, ...]:
    """Return the sizes that a block may have, in ascending order.

    XLA compiles each size separately, and the number of rows in a group is
    data. So a group is padded to the next size, and a group above the largest
    size is cut into several blocks. The sizes lie close around the even share
    P / E, the size of the groups of a balanced router.

    Args:
        num_rows: P. If it is symbolic (JAX), the even share is unknown and the
            sizes are the same for every P.
        num_groups: E.
    """
    if not isinstance(num_rows, int):
        return UNKNOWN_P_SIZES
    eighths = (math.ceil(num_rows * s / num_groups / 8) for s in SHARES)
    most = max(1, num_rows)
    return tuple(sorted({min(most, 8 * max(1, e)) for e in eighths}))


def few_rows_size(num_rows: int | Tensor, num_groups: int) -> int:
    """Return the single block size for groups of few rows.

    It is twice the even share P / E, so that almost every group fits into one
    block.

    Args:
        num_rows: P. It may be symbolic (JAX).
        num_groups: E.
    """
    if not isinstance(num_rows, int):
        return UNKNOWN_P_SIZES[0]
    return min(max(1, num_rows), -(-2 * num_rows // num_groups) or 1)
