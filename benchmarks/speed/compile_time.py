"""Measure tracing and compilation: the first training step, minus a later one.

    KERAS_BACKEND=jax python benchmarks/speed/compile_time.py

`run_suite.py` runs it as the part `first_step`. The model has 24 transformer
blocks with 128 experts each, which are so small (D = F = 64, T = 256, K = 2)
that tracing and compilation dominate. It is compared with a model of dense
networks of width K * F. Each model runs in a separate process, in turns.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import command_line
from benchmarks.shared.shapes import Shape
from benchmarks.shared.timing import ratio

BATCH, LENGTH = 4, 64
SHAPE = Shape(T=BATCH * LENGTH, D=64, F=64, E=128, K=2)
KINDS = ("dense", "moe")


def build(kind, blocks):
    """Return a compiled model of transformer blocks."""
    import keras

    import keras_moe
    from benchmarks.shared import contestants

    inputs = keras.Input((LENGTH, SHAPE.D), BATCH)
    x = inputs
    for _ in range(blocks):
        if kind == "moe":
            network = contestants.moe_block(SHAPE)
        else:
            network = contestants.dense_twin(SHAPE)
        x = keras_moe.TransformerEncoderBlock(4, network)(x)
    model = keras.Model(inputs, x)
    model.compile("adam", "mse")
    return model


def measure_one(kind, blocks):
    """Return the seconds of the build and three steps, in a child process."""
    import numpy as np

    from benchmarks.shared import contestants  # noqa: F401  (not timed)

    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, SHAPE.D))
    x = x.astype("float32")
    start = time.perf_counter()
    model = build(kind, blocks)
    taken = {"build": time.perf_counter() - start}
    for name in ("first", "second", "third"):
        start = time.perf_counter()
        model.train_on_batch(x, x)
        taken[name] = time.perf_counter() - start
    return taken


def in_child(kind, blocks):
    """Run `measure_one` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--child", kind]
        + ["--blocks", str(blocks)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _compiling(taken):
    """Return the seconds of the first step minus those of the third.

    On PyTorch, all steps take the same time, so the difference is nearly 0.
    Both steps contain the optimizer's work on 128 times the weights.
    """
    return taken["first"] - taken["third"]


def main():
    """Write one record per kind of model."""
    parser = command_line.parser_of(__doc__)
    parser.add_argument("--child", choices=KINDS)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    blocks = args.blocks or (3 if args.quick else 24)
    if args.child:
        print(json.dumps(measure_one(args.child, blocks)))
        return
    rounds = args.rounds or (1 if args.quick else 3)
    taken = {kind: [] for kind in KINDS}
    for i in range(rounds):
        for kind in KINDS if i % 2 == 0 else KINDS[::-1]:
            taken[kind].append(in_child(kind, blocks))
    records = []
    for kind, found in taken.items():
        median = {n: statistics.median(f[n] for f in found) for n in found[0]}
        own, dense = (
            [_compiling(f) for f in taken[k]] for k in (kind, "dense")
        )
        record = {"part": "first_step", "name": kind, "blocks": blocks}
        record |= {"status": "ok", **median}
        records.append(record | {"to_dense": list(ratio(own, dense))})
        print(records[-1], file=sys.stderr)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
