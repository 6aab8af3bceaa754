"""How large the blocks of rows are that XLA's loops go through."""


def block_rows(num_rows: int, num_groups: int) -> int:
    """Returns B, a quarter more than the even share: most groups fit in one.

    Args:
        num_rows: P.
        num_groups: E.
    """
    share = -(-5 * num_rows // (4 * num_groups))
    rounded = share if share <= 8 else -(-share // 8) * 8
    return max(1, min(rounded, num_rows))
