"""Measure the rate of an expert's matrix products on TensorFlow, in GFLOP/s.

    KERAS_BACKEND=tensorflow python benchmarks/speed/tensorflow_products.py

The table shows why `kernels` transposes the hidden units in training, and how
slow products are at widths of whole memory pages. "up, after" transposes the
result instead of the operands, which is used for few rows. `--pinned` pins the
process to one core.

P rows, D = 512, F units.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import timing

D, BANK = 512, 8  # so many matrices that none stays in the cache
ROWS, WIDTHS = (32, 128, 256, 384), (1024, 1040)


def products(rows, units, tf):
    """Return a pair of functions per product: plain, and transposed."""
    shapes = {"x": (rows, D), "h": (rows, units), "ht": (units, rows)}
    shapes |= {"up": (D, units), "down": (units, D)}
    x, h, ht, up, down = (
        [tf.random.normal(shape) for _ in range(BANK)]
        for shape in shapes.values()
    )

    def run(a, b, after=tf.identity, **transposed):
        def call():
            for left, right in zip(a, b, strict=True):
                last = after(tf.matmul(left, right, **transposed))
            return last.numpy()

        return call

    first = {"transpose_a": True}
    second = {"transpose_b": True}
    return {
        "up": (run(x, up), run(up, x, **first, **second)),
        "up, after": (run(x, up), run(x, up, tf.transpose)),
        "y": (run(h, down), run(ht, down, **first)),
        "gradient of hidden": (run(x, down, **second), run(down, x, **second)),
        "gradient of x": (run(h, up, **second), run(up, ht)),
        "gradient of up": (run(x, h, **first), run(x, ht, **first, **second)),
        "gradient of down": (run(h, x, **first), run(ht, x)),
    }


def main():
    """Print one line per product."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pinned", action="store_true")
    args = parser.parse_args()
    clock = timing.clock_of(args.pinned)
    if args.pinned:
        timing.pin()
    import tensorflow as tf

    print("| F | P | product | GFLOP/s | transposed |")
    print("| --- | --- | --- | --- | --- |")
    for units in WIDTHS:
        for rows in ROWS:
            flops = 2 * rows * D * units * BANK
            for name, calls in products(rows, units, tf).items():
                named = dict(zip(("plain", "transposed"), calls, strict=True))
                times = timing.interleave(named, "plain", timing.QUICK, clock)
                rates = [
                    f"{flops / statistics.median(taken) / 1e9:.0f}"
                    for taken in times.values()
                ]
                print(f"| {units} | {rows} | {name} | {' | '.join(rates)} |")


if __name__ == "__main__":
    main()
