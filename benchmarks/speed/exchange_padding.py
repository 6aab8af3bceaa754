"""What a dropless exchange pays in padding on JAX, where shapes are fixed.

    KERAS_BACKEND=jax python benchmarks/exchange.py

Routes T tokens a device to E experts on N devices and counts the rows that
travel: those that must, those of the rounds that `kernels/jax_exchange.py`
makes of them, and those of buffers for the worst case. Prints a table.
"""

import numpy as np
from keras import ops

from keras_moe import Router
from keras_moe.kernels.exchange import rows_of_way

DEVICES, TOKENS, WIDTH, TOP_K = 8, 1024, 64, 2


def even(rng, experts):
    """A fresh router on normal tokens."""
    return routed(Router(experts, TOP_K), rng)


def routed(router, rng):
    tokens = rng.normal(size=(DEVICES * TOKENS, WIDTH)).astype("float32")
    index = ops.convert_to_numpy(router(tokens).expert_index)
    return index.reshape(DEVICES, -1)


def skewed(rng, experts):
    """Sixty of a hundred pairs to the first expert."""
    index = even(rng, experts)
    return np.where(rng.random(index.shape) < 0.6, 0, index)


def one_expert(rng, experts):
    """All of them."""
    return np.zeros_like(even(rng, experts))


def row(name, index, experts):
    """A line of the table: rows a device, in units of its pairs."""
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
