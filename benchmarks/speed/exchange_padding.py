"""Count the padding that a dropless exchange between devices sends on JAX.

    KERAS_BACKEND=jax python benchmarks/speed/exchange_padding.py

JAX fixes shapes before the load is known. This script routes `TOKENS` tokens
per device to E experts on `DEVICES` devices, and prints a table of the rows
that are sent: in rounds, as the package sends them, and with buffers for the
worst case. Nothing is timed.
"""

import sys
from pathlib import Path

import numpy as np
from keras import ops

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from keras_moe import Router
from keras_moe.kernels.exchange import rows_of_way

DEVICES, TOKENS, WIDTH, TOP_K = 8, 1024, 64, 2


def even(rng, experts):
    """Return the experts that a fresh router chooses for normal tokens."""
    return routed(Router(experts, TOP_K), rng)


def routed(router, rng):
    tokens = rng.normal(size=(DEVICES * TOKENS, WIDTH)).astype("float32")
    index = ops.convert_to_numpy(router(tokens).expert_index)
    return index.reshape(DEVICES, -1)


def skewed(rng, experts):
    """Send 60% of the pairs to the first expert."""
    index = even(rng, experts)
    return np.where(rng.random(index.shape) < 0.6, 0, index)


def one_expert(rng, experts):
    """Send all pairs to the first expert."""
    return np.zeros_like(even(rng, experts))


def row(name, index, experts):
    """Return a line of the table, in units of the pairs of a device."""
    pairs = index.shape[1]
    to = index // (experts // DEVICES)
    ways = np.stack([np.bincount(d, minlength=DEVICES) for d in to])
    places = rows_of_way(pairs, experts, DEVICES, None)
    rounds = -(-int(ways.max()) // places)
    sent = rounds * DEVICES * places
    bound = DEVICES * (int(ways.max()) + places)
    assert sent <= bound
    return (
        f"| {name} | {experts} | {ways.max() * DEVICES / pairs:.2f} | {rounds} "
        f"| {sent / pairs:.2f} | {DEVICES:.2f} |"
    )


def main():
    print(
        f"{DEVICES} devices, {TOKENS} tokens each, K = {TOP_K}; rows in units "
        "of the pairs of a device.\n\n"
        "| routing | E | fullest way | rounds | rows sent | worst-case buffers "
        "|\n|---|---|---|---|---|---|"
    )
    for experts in (8, 64, 128):
        for name, route in (
            ("fresh router", even),
            ("60 % to one expert", skewed),
            ("all to one expert", one_expert),
        ):
            index = route(np.random.default_rng(0), experts)
            print(row(name, index, experts))


if __name__ == "__main__":
    main()
