"""Peak memory of a training step at M and L, each in its own process.

`KERAS_BACKEND=jax python benchmarks/memory.py --only M`; `run.py` runs it.

`peak` is the most resident memory during a warm training step, less what was
resident before the model was built: weights, inputs, activations, temporaries
and gradients. (By how much memory grows during a step would not do: some
allocators keep what they have been given.) The bound is the dense FFN's peak
over as many rows, plus what a MoE must have more: the weights and the
gradients of its E experts.
"""

import json
import math
import subprocess
import sys

import options
from shapes import SHAPES, Shape

NAMES = (
    "limit",
    "limitE",
    "keras_moe",
    "KerasHub Qwen3-MoE",
    "transformers Qwen3-MoE, grouped_mm",
)


def measure_one(name, shape):
    """Returns bytes of the weights and of the peak; in a child."""
    import cells
    import measure
    from problem import draw

    tiny = _find(name, draw(Shape(T=8, D=16, F=16, E=4, K=2)))
    if tiny is None:
        return None
    tiny.call("train")()  # what the backend loads and keeps, once
    cells.forget()
    problem = draw(SHAPES[shape])
    before = measure.resident()
    one = _find(name, problem)
    step = one.call("train")
    step()
    step()
    sizes = (math.prod(v.shape) for v in one.layer.trainable_variables)
    peak = measure.peak_resident(step) - before
    return {"weights": 4 * sum(sizes), "peak": peak}


def _find(name, problem):
    """Returns the contestant of that name, or None without it."""
    import contestants

    if name in ("limit", "limitE"):
        cast = contestants.limits(problem)
    elif name == "keras_moe":
        cast = contestants.ours(problem)
    else:
        cast = contestants.others(problem, only=(name,))
    return next((one for one in cast if one.name == name), None)


def bound(dense, moe):
    """Returns the bytes `moe` may take: see above.

    Args:
        dense, moe: dicts with `weights` and `peak`.
    """
    return dense["peak"] + 2 * (moe["weights"] - dense["weights"])


def measure_shape(shape, names):
    """Returns the records of one shape."""
    found = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", name]
            + ["--only", shape],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = done.stdout.strip().splitlines()[-1:] or ["null"]
        found[name] = json.loads(line[0]) if not done.returncode else "fails"
    records = []
    for name, bytes_ in found.items():
        if bytes_ is None:  # not installed, or of another backend
            continue
        record = {"part": "memory", "shape": shape, "name": name}
        if bytes_ == "fails":
            record["status"] = "fails"
        else:
            to_bound = bytes_["peak"] / bound(found["limit"], bytes_)
            record |= {"status": "ok", **bytes_, "to_bound": to_bound}
        print(record, file=sys.stderr)
        records.append(record)
    return records


def main():
    """Writes the records; with `--child`, prints one contestant's bytes."""
    parser = options.parser_of(__doc__)
    parser.add_argument("--child", choices=NAMES)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_one(args.child, args.only)))
        return
    names = NAMES[:3] if args.no_peers or args.quick else NAMES
    records = []
    for shape in options.chosen(args.only, ("S", "M", "L")):
        if args.only or shape != "S":
            records += measure_shape(shape, names)
    options.write(records, args.out)


if __name__ == "__main__":
    main()
