"""Does the cost of a training step follow top_k, or num_experts?

`KERAS_BACKEND=jax python benchmarks/flat_in_experts.py`; `make bench` runs it
on each backend. The step time of `model.fit` with a MoEBlock of many experts
over that with few, at the same top_k: 2,048 tokens of width 256, top 2. All
experts for every token would give the ratio of the counts, 8. No way of
computing can give 1: every expert's weights are read, their gradient written
and the optimizer applied, and each expert has fewer rows to multiply them by.
So the same is measured of E dense networks on equal shares of the rows, with
no routing at all (`limitE`).

`block` is a model of nothing but the block; `encoder` is 16 sequences of 128
tokens through a TransformerEncoderBlock with that block. The two sizes take
turns, A B B A; the figure is the median of the rounds' ratios.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

import keras_moe

TOKENS, WIDTH, TOP_K, LENGTH = 2048, 256, 2, 128


class SeparateNetworks(keras.layers.Layer):
    """`limitE`: E dense networks, each on its equal share of K * T rows."""

    def __init__(self, num_experts, intermediate_dim):
        super().__init__()
        self.networks = [
            keras_moe.Expert(intermediate_dim) for _ in range(num_experts)
        ]

    def build(self, input_shape):
        for network in self.networks:
            network.build(input_shape)

    def call(self, x):
        rows = ops.repeat(x, TOP_K, axis=0)
        shares = ops.split(rows, len(self.networks), axis=0)
        pairs = zip(self.networks, shares, strict=True)
        rows = ops.concatenate([network(share) for network, share in pairs])
        return ops.sum(ops.reshape(rows, (-1, TOP_K, WIDTH)), axis=1)

    def compute_output_shape(self, input_shape):
        return input_shape


def layer_of(kind, num_experts, intermediate_dim):
    """Returns what is measured, and the shape of one of its inputs."""
    if kind == "limitE":
        return SeparateNetworks(num_experts, intermediate_dim), (WIDTH,)
    block = keras_moe.MoEBlock(num_experts, intermediate_dim, top_k=TOP_K)
    if kind == "block":
        return block, (WIDTH,)
    return keras_moe.TransformerEncoderBlock(4, block), (LENGTH, WIDTH)


def build(kind, num_experts, intermediate_dim, optimizer):
    """Returns a compiled model and the shape of one of its inputs."""
    layer, shape = layer_of(kind, num_experts, intermediate_dim)
    inputs = keras.Input(
        shape, batch_size=TOKENS * WIDTH // int(np.prod(shape))
    )
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer, "mse")
    return model


def seconds_a_step(model, data, steps):
    """Wall time of `model.fit` over `steps` batches, divided by them."""
    batch_size = model.input_shape[0]
    start = time.perf_counter()
    model.fit(*data, batch_size=batch_size, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / steps


def measure(models, rounds, steps):
    """Returns the median seconds a step of both models, and the ratios."""
    shape = models[0].input_shape
    x = np.random.default_rng(0).normal(size=(steps * shape[0], *shape[1:]))
    x = x.astype("float32")
    data = (x, np.tanh(x[..., ::-1]))
    for model in models:
        seconds_a_step(model, data, steps)  # trace, compile, warm up
    times, ratios = ([], []), []
    for _ in range(rounds):
        taken = [0.0, 0.0]
        for which in (0, 1, 1, 0):
            taken[which] += seconds_a_step(models[which], data, steps) / 2
        for kept, seconds in zip(times, taken, strict=True):
            kept.append(seconds)
        ratios.append(taken[1] / taken[0])
    return [statistics.median(t) for t in times], ratios


def main():
    """Prints a Markdown table, one row for each kind of model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--intermediate-dim", type=int, default=512)
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    a = parser.parse_args()
    print(
        f"| backend | model | {a.few} experts, ms | {a.many} experts, ms "
        "| ratio, median | min ... max |\n|---|---|---|---|---|---|"
    )
    for kind in ("limitE", "block", "encoder"):
        models = [
            build(kind, e, a.intermediate_dim, a.optimizer)
            for e in (a.few, a.many)
        ]
        (few, many), ratios = measure(models, a.rounds, a.steps)
        print(
            f"| {keras.backend.backend()} | {kind} | {few * 1e3:.0f} | "
            f"{many * 1e3:.0f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} ... {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
