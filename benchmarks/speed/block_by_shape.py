"""The block at S, M, L, D1 and D8: ours, the limits, and the peers.

`KERAS_BACKEND=torch python benchmarks/blocks.py --only S --out S.json`;
`run.py` runs it. T tokens, D hidden_dim, F intermediate_dim, E experts, K
top_k. bfloat16 is the dtype policy `bfloat16`: weights, too, so that what is
compared is the rate of the backend's bfloat16 products.
"""

import cells
import contestants
import keras
import options
from problem import draw
from shapes import DECODE, SHAPES, Shape

# What a quick run times: the peers at S only, by name.
QUICK = {"S": ("forward", "train"), "D1": ("forward",)}
MAIN_PEERS = ("KerasHub Qwen3-MoE", "transformers Qwen3-MoE, grouped_mm")
EVERY_PEER = ("S", "D1")  # the others' shapes: at M and L they take minutes
DENSE_PEER_SHAPES = ("S", "L", "D1")  # KerasHub's, which compute every expert
COMPILED = ("S", "L", "D1")  # compiling a model takes a minute on torch
PEER_KINDS = ("forward", "f+b")
HALF = ("S", "M")  # shapes for bfloat16


def kinds_of(name, quick):
    """Decoding does not train."""
    if quick:
        return QUICK[name]
    return ("forward",) if name in DECODE else ("forward", "f+b", "train")


def cast_of(problem, name, quick, peers):
    """Returns the contestants of a shape: the main peers, or every one."""
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
    """Returns the records of one shape and dtype."""
    keras.config.set_dtype_policy(dtype)
    problem = draw(shape, dtype)
    # In bfloat16 most of the peers would only repeat the picture of float32.
    peers = not args.no_peers and (dtype == "float32" or name == "S")
    records = cells.measure_cell(
        cast_of(problem, name, args.quick, peers),
        kinds_of(name, args.quick),
        quick=args.quick,
        pinned=args.pinned,
        part="blocks",
        shape=name,
        dtype=dtype,
    )
    cells.forget()
    for record in records:
        record["imbalance"] = problem.imbalance
    return records


def main():
    """Writes the records of every shape and dtype asked for."""
    args = options.parser_of(__doc__).parse_args()
    records = []
    for dtype in args.dtype.split(","):
        names = QUICK if args.quick else SHAPES
        if dtype != "float32":
            names = () if args.quick else HALF
        for name in options.chosen(args.only, SHAPES):
            if name in names:
                records += measure_shape(name, SHAPES[name], dtype, args)
    options.write(records, args.out)


if __name__ == "__main__":
    main()
