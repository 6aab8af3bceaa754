"""Does the cost of a training step follow top_k, or num_experts?

`KERAS_BACKEND=jax python benchmarks/flat_in_experts.py` (`make bench` runs it
on each backend). The step time of `model.fit` with a MoEBlock of many experts
over that with few, at the same top_k: 2,048 tokens of width 256, top 2. The
two models take turns, A B B A; the figure is the median of the rounds' ratios.
Every expert's weights must be read, their gradient written and the optimizer
applied, so that the ratio cannot be 1; all experts for every token would give
the ratio of the counts.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import keras_moe

TOKENS, WIDTH, TOP_K = 2048, 256, 2


def build(num_experts, intermediate_dim, optimizer):
    """A model of one block, compiled."""
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras_moe.MoEBlock(num_experts, intermediate_dim, top_k=TOP_K),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def seconds_a_step(model, data, steps):
    """Wall time of `model.fit` over `steps` batches, divided by them."""
    start = time.perf_counter()
    model.fit(*data, batch_size=TOKENS, verbose=0)
    return (time.perf_counter() - start) / steps


def measure(few, many, intermediate_dim, optimizer, rounds, steps):
    """Returns the median seconds a step of both, and the ratios."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(TOKENS * steps, WIDTH)).astype("float32")
    data = (x, np.tanh(x[:, ::-1]))
    models = [build(e, intermediate_dim, optimizer) for e in (few, many)]
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
    """Prints one row of a Markdown table for each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--many", type=int, default=64)
    parser.add_argument("--intermediate-dim", type=int, default=1024)
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    a = parser.parse_args()
    print(
        f"| backend | optimizer | {a.few} experts, ms | {a.many} experts, ms "
        "| ratio, median | min ... max |\n|---|---|---|---|---|---|"
    )
    for optimizer in a.optimizers:
        (few, many), ratios = measure(
            a.few, a.many, a.intermediate_dim, optimizer, a.rounds, a.steps
        )
        print(
            f"| {keras.backend.backend()} | {optimizer} | {few * 1e3:.0f} | "
            f"{many * 1e3:.0f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} ... {max(ratios):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
