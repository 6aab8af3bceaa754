"""Does the cost of a training step follow top_k, or num_experts?

`KERAS_BACKEND=jax python benchmarks/flat_in_experts.py`; `make bench` runs it
on each backend. The step time of `model.fit` with a MoEBlock of many experts
over that with few, at the same top_k: 2,048 tokens of width 256, top 2. All
experts for every token would give the ratio of the counts, 8. No way of
computing can give 1: every expert's weights are read, their gradient written
and the optimizer applied, and each expert has fewer rows to multiply them by.
So the same is measured of E dense networks on equal shares of the rows, with
no routing at all (`limitE`).

`block` is a model of nothing but the block. `language model` is a small whole
one: 16 sequences of 128 token ids out of 1,000, an embedding, one
TransformerEncoderBlock with that block, and the logits. The two sizes take
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

TOKENS, WIDTH, TOP_K, LENGTH, VOCABULARY = 2048, 256, 2, 128, 1000


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
        shares = ops.split(x, len(self.networks) // TOP_K, axis=0) * TOP_K
        pairs = zip(self.networks, shares, strict=True)
        rows = ops.concatenate([network(share) for network, share in pairs])
        return ops.sum(ops.reshape(rows, (TOP_K, -1, WIDTH)), axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape


def build(kind, num_experts, intermediate_dim, optimizer):
    """Returns a compiled model of static shapes."""
    block = keras_moe.MoEBlock(num_experts, intermediate_dim, top_k=TOP_K)
    if kind == "language model":
        inputs = keras.Input((LENGTH,), TOKENS // LENGTH, dtype="int32")
        x = keras.layers.Embedding(VOCABULARY, WIDTH)(inputs)
        x = keras_moe.TransformerEncoderBlock(4, block)(x)
        outputs = keras.layers.Dense(VOCABULARY, activation="softmax")(x)
        loss = "sparse_categorical_crossentropy"
    else:
        inputs = keras.Input((WIDTH,), TOKENS)
        separate = SeparateNetworks(num_experts, intermediate_dim)
        outputs = (separate if kind == "limitE" else block)(inputs)
        loss = "mse"
    model = keras.Model(inputs, outputs)
    model.compile(optimizer, loss)
    return model


def data_for(model, steps):
    """Returns inputs and targets of as many batches as there are steps."""
    rng = np.random.default_rng(0)
    shape = (steps * model.input_shape[0], model.input_shape[1])
    if shape[1] == LENGTH:
        ids = rng.integers(0, VOCABULARY, shape)
        return ids, np.roll(ids, -1, axis=1)
    x = rng.normal(size=shape).astype("float32")
    return x, np.tanh(x[:, ::-1])


def seconds_a_step(model, data, steps):
    """Wall time of `model.fit` over `steps` batches, divided by them."""
    batch_size = model.input_shape[0]
    start = time.perf_counter()
    model.fit(*data, batch_size=batch_size, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / steps


def measure(models, rounds, steps):
    """Returns the median seconds a step of both models, and the ratios."""
    data = data_for(models[0], steps)
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
    for kind in ("limitE", "block", "language model"):
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
