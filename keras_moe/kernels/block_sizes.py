"""How large the blocks of rows are that XLA's loops go through."""

import math

from keras_moe.types import Tensor

SHARES = (0.5, 0.75, 0.9, 1.05, 1.2, 1.5)
UNKNOWN_P_SIZES = (8, 32, 128)


def block_sizes(num_rows: int | Tensor, num_groups: int) -> tuple[int, ...]:
    """Returns the sizes a block may have, ascending; a group takes the least.

    XLA compiles each size by itself and the rows of a group are data, so a
    group is filled up to the next size, and one above the largest is cut.
    The sizes lie close around the even share P / E, where a balanced router
    puts the groups. One size of 1.25 shares cost 5 to 20 % more at the shapes
    S, M and L of `benchmarks/`; more sizes than these gained nothing clear.

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
    """Returns the one size of a block where a group has a few rows: twice the
    even share, so that one block holds almost every group.

    Args:
        num_rows: P; symbolic as in `block_sizes`.
        num_groups: E.
    """
    if not isinstance(num_rows, int):
        return UNKNOWN_P_SIZES[0]
    return min(max(1, num_rows), -(-2 * num_rows // num_groups) or 1)
