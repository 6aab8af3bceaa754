"""Define rows of two processes that hold two of four experts each.

P rows, E experts, D and D' widths.
"""

import numpy as np

WIDTH, OUT, EXPERTS = 3, 2, 4  # D, D', E
BEHIND = 2  # rows that belong to no expert
# The number of rows of each expert, by process.
SIZES = {
    "to each other": ([0, 0, 3, 2], [4, 1, 0, 0]),
    "anywhere": ([2, 0, 1, 3], [1, 4, 0, 1]),
    "none here": ([1, 2, 3, 0], [0, 0, 0, 0]),
    "none at all": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "one expert": ([5, 0, 0, 0], [4, 0, 0, 0]),
}


def drawn(name):
    """Return the kernel, and each process's rows and upstream gradients.

    The shapes are `(E, D, D')`, `(P, D)`, and `(P, D')`, all float32.
    """
    rng = np.random.default_rng(list(SIZES).index(name))

    def draw(*shape):
        return rng.normal(size=shape).astype("float32")

    counts = [sum(sizes) + BEHIND for sizes in SIZES[name]]
    kernel = draw(EXPERTS, WIDTH, OUT)
    rows = [draw(count, WIDTH) for count in counts]
    return kernel, rows, [draw(count, OUT) for count in counts]
