"""Time `model.fit` and `model.predict` of a 6-block MoE transformer.

    KERAS_BACKEND=torch python benchmarks/speed/fit_and_predict.py

`run_suite.py` runs it as the part `end_to_end`. A batch has 8 sequences of 512
tokens. The blocks have D = 512, 16 experts of F = 1024, K = 2, SwiGLU without
biases, and a load-balancing loss. Three models differ in the feed-forward part:
keras_moe's block, the dense network of the same active FLOPs (K * F wide), and
KerasHub's Qwen3-MoE block. All are trained with `FusedAdam`. On PyTorch, the
only backend on which `FusedAdam` differs from Keras's Adam, they are trained
with Keras's Adam as well, except for KerasHub's.

B batch, S sequence length, D hidden_dim.
"""

import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import keras_moe
from benchmarks.shared import command_line, contestants, other_libraries
from benchmarks.shared.shapes import Shape
from benchmarks.shared.timed_calls import BACKEND
from benchmarks.shared.timing import clock_of, ratio
from keras_moe.training import FusedAdam

BLOCKS, BATCH, LENGTH, VOCABULARY, STEPS = 6, 8, 512, 1000, 2
SHAPE = Shape(T=BATCH * LENGTH, D=512, F=1024, E=16, K=2)
QUICK = Shape(T=2 * 128, D=128, F=256, E=16, K=2)
PEER = "KerasHub Qwen3-MoE"
LOSS_WEIGHT = 0.01
OPTIMIZERS = {"FusedAdam": FusedAdam, "Adam": keras.optimizers.Adam}


class FirstOutput(keras.layers.Layer):
    """Returns the first output of a layer of `(B, S, D)`."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def build(self, input_shape):
        self.block.build(input_shape)

    def call(self, x, training=None):
        return self.block(x, training=training)[0]

    def compute_output_shape(self, input_shape):
        return input_shape


def network(name, shape):
    """Return the feed-forward part of one transformer block."""
    if name == "dense":
        return contestants.dense_twin(shape)
    if name == "keras_moe":
        return contestants.moe_block(shape, load_balancing_weight=LOSS_WEIGHT)
    return FirstOutput(
        other_libraries.kerashub_blocks(shape, LOSS_WEIGHT)[name]
    )


def build(name, shape, batch, length, optimizer="FusedAdam"):
    """Return a compiled language model."""
    inputs = keras.Input((length,), batch, dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, shape.D)(inputs)
    for _ in range(BLOCKS):
        x = keras_moe.TransformerEncoderBlock(8, network(name, shape))(x)
    outputs = keras.layers.Dense(VOCABULARY)(x)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer](), loss)
    return model


def turn(model, kind, ids, batch, clock):
    """Return the seconds per step of `fit` or `predict` on all the ids."""
    start = clock()
    if kind == "fit":
        targets = np.roll(ids, -1, axis=1)
        model.fit(ids, targets, batch_size=batch, shuffle=False, verbose=0)
    else:
        model.predict(ids, batch_size=batch, verbose=0)
    return (clock() - start) * batch / len(ids)


def measure(models, kind, batch, length, rounds, clock):
    """Return the seconds per step of each model, one per round, in turns.

    KerasHub's model takes many times as long, so it has one turn of one step.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (STEPS * batch, length))
    for model in models.values():
        turn(model, kind, ids[:batch], batch, clock)  # trace, compile, warm up
    fast = [name for name in models if name != PEER]
    times = {name: [] for name in models}
    for i in range(rounds):
        taken = {name: 0.0 for name in fast}
        for name in fast + fast[::-1]:
            taken[name] += turn(models[name], kind, ids, batch, clock) / 2
        if PEER in models and i == 0:
            taken[PEER] = turn(models[PEER], kind, ids[:batch], batch, clock)
        for name, seconds in taken.items():
            times[name].append(seconds)
    return times


def measured(models, kind, shape, batch, rounds, optimizer, clock):
    """Return one record per model."""
    times = measure(models, kind, batch, shape.T // batch, rounds, clock)
    records = []
    for name, taken in times.items():
        seconds = float(np.median(taken))
        record = {"part": "end_to_end", "kind": kind, "name": name}
        record |= {"status": "ok", "seconds": seconds}
        record["tokens_per_second"] = shape.T / seconds
        record["to_dense"] = list(ratio(taken, times["dense"]))
        record["optimizer"] = optimizer
        records.append(record)
        print(record, file=sys.stderr)
    return records


def main():
    """Write one record per model for `fit` and for `predict`."""
    parser = command_line.parser_of(__doc__)
    parser.add_argument("--intermediate-dim", type=int)
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args()
    shape, batch = (QUICK, 2) if args.quick else (SHAPE, BATCH)
    if args.intermediate_dim:
        shape = shape._replace(F=args.intermediate_dim)
    names = ["dense", "keras_moe"]
    if other_libraries.installed("keras_hub") and not args.no_peers:
        names.append(PEER)
    rounds = args.rounds or (2 if args.quick else 3)
    clock = clock_of(args.pinned)
    records = []
    for optimizer in OPTIMIZERS if BACKEND == "torch" else ("FusedAdam",):
        if optimizer == "Adam":
            names = names[:2]
        models = {
            name: build(name, shape, batch, shape.T // batch, optimizer)
            for name in names
        }
        for kind in ("fit", "predict") if optimizer != "Adam" else ("fit",):
            records += measured(
                models, kind, shape, batch, rounds, optimizer, clock
            )
        del models
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
