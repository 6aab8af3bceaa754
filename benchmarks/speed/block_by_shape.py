"""Time one block at each shape: keras_moe, the limits, and other libraries.

    KERAS_BACKEND=torch python benchmarks/speed/block_by_shape.py --only S

`run_suite.py` runs it as the part `blocks`. The dtype policy `bfloat16`
includes the weights, so that the speeds of the backend's bfloat16 products are
compared.
"""

import sys
from pathlib import Path

import keras

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import check_and_time, command_line, contestants
from benchmarks.shared.random_problem import draw
from benchmarks.shared.shapes import DECODE, SHAPES, Shape

# The shapes and kinds of a quick run, which times other libraries only at S.
QUICK = {"S": ("forward", "train"), "D1": ("forward",)}
MAIN_PEERS = ("KerasHub Qwen3-MoE", "transformers Qwen3-MoE, grouped_mm")
EVERY_PEER = ("S", "D1")  # at M and L the others take minutes
DENSE_PEER_SHAPES = ("S", "L", "D1")  # KerasHub computes every expert
COMPILED = ("S", "L", "D1")  # compiling a model takes a minute on torch
PEER_KINDS = ("forward", "f+b")
HALF = ("S", "M")  # shapes for bfloat16


def kinds_of(name, quick):
    """Return the kinds to time at a shape; decoding shapes are not trained."""
    if quick:
        return QUICK[name]
    return ("forward",) if name in DECODE else ("forward", "f+b", "train")


def cast_of(problem, name, quick, peers):
    """Return the contestants of a shape, with the main or all libraries."""
    cast = contestants.limits(problem)
    own = contestants.ours(problem, forced=not quick)
    cast += own
    if not quick and name in COMPILED:
        cast += contestants.compiled(own[0])
    if not peers or (quick and name != "S"):
        return cast
    for peer in contestants.others(problem):
        main = peer.name in MAIN_PEERS
        if not main and (quick or name not in EVERY_PEER):
            continue
        if "KerasHub" in peer.name and name not in DENSE_PEER_SHAPES:
            continue
        kinds = ("forward", "f+b", "train") if name == "S" else PEER_KINDS
        cast.append(peer._replace(kinds=kinds))
    return cast


def measure_shape(name, shape: Shape, dtype, args):
    """Return the records of one shape and dtype."""
    keras.config.set_dtype_policy(dtype)
    problem = draw(shape, dtype)
    # In bfloat16 the ratios to most libraries are nearly those of float32.
    peers = not args.no_peers and (dtype == "float32" or name == "S")
    records = check_and_time.measure_cell(
        cast_of(problem, name, args.quick, peers),
        kinds_of(name, args.quick),
        quick=args.quick,
        pinned=args.pinned,
        part="blocks",
        shape=name,
        dtype=dtype,
    )
    check_and_time.forget()
    for record in records:
        record["imbalance"] = problem.imbalance
    return records


def main():
    """Write the records of every selected shape and dtype."""
    args = command_line.parser_of(__doc__).parse_args()
    records = []
    for dtype in args.dtype.split(","):
        names = QUICK if args.quick else SHAPES
        if dtype != "float32":
            names = () if args.quick else HALF
        for name in command_line.chosen(args.only, SHAPES):
            if name in names:
                records += measure_shape(name, SHAPES[name], dtype, args)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
