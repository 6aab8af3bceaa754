"""Define the sizes at which the benchmarks measure.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k.
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """Sizes of a block. If `skewed`, one expert gets 60% of the pairs."""

    T: int
    D: int
    F: int
    E: int
    K: int
    skewed: bool = False


SHAPES = {
    "S": Shape(T=512, D=256, F=1024, E=8, K=2),
    "M": Shape(T=4096, D=512, F=2048, E=16, K=2),
    "L": Shape(T=2048, D=512, F=1024, E=64, K=8),
    "D1": Shape(T=1, D=1024, F=2816, E=32, K=4),
    "D8": Shape(T=8, D=1024, F=2816, E=32, K=4),
}
DECODE = ("D1", "D8")

# The number of experts grows at the same T, K, D, and F, so the active FLOPs
# are the same.
FLAT = {e: Shape(T=2048, D=512, F=512, E=e, K=2) for e in (8, 16, 32, 64, 128)}
FLAT_QUICK = (8, 64)

# The number of tokens grows from a short prompt to a large batch, at the widths
# of S.
TOKENS = {
    t: Shape(T=t, D=256, F=1024, E=8, K=2)
    for t in (256, 512, 1024, 2048, 4096, 8192, 16384)
}

# With K = 2 no expert can get more than half of the pairs, so skewed routing is
# measured at K = 1 with K times the tokens, which gives the same number of
# pairs.
SKEWED = {
    name: shape._replace(T=shape.T * shape.K, K=1)
    for name, shape in {
        "S": SHAPES["S"],
        "M": SHAPES["M"],
        "flat, E=64": FLAT[64],
    }.items()
}
