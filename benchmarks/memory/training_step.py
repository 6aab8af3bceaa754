"""Measure the peak memory of a training step at the shapes M and L.

    KERAS_BACKEND=jax python benchmarks/memory/training_step.py --only M

`run_suite.py` runs it as the part `memory`. Each contestant is measured in a
separate process. `peak` is the largest resident memory during a warm training
step, minus the resident memory before the model was built: weights, inputs,
activations, temporaries, and gradients. (The growth during a step would be too
small, because some allocators keep freed memory.) The upper bound is the peak
of the dense FFN on the same number of rows, plus the weights and the gradients
that a MoE has in addition.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.memory.peak import peak_resident, resident
from benchmarks.shared import command_line
from benchmarks.shared.shapes import SHAPES, Shape

NAMES = (
    "limit",
    "limitE",
    "keras_moe",
    "KerasHub Qwen3-MoE",
    "transformers Qwen3-MoE, grouped_mm",
)


def measure_one(name, shape):
    """Return the bytes of the weights and of the peak, in a child process."""
    from benchmarks.shared import check_and_time
    from benchmarks.shared.random_problem import draw

    tiny = _find(name, draw(Shape(T=8, D=16, F=16, E=4, K=2)))
    if tiny is None:
        return None
    tiny.call("train")()  # allocate what the backend keeps
    check_and_time.forget()
    problem = draw(SHAPES[shape])
    before = resident()
    one = _find(name, problem)
    step = one.call("train")
    step()
    step()
    sizes = (math.prod(v.shape) for v in one.layer.trainable_variables)
    peak = peak_resident(step) - before
    return {"weights": 4 * sum(sizes), "peak": peak}


def _find(name, problem):
    """Return the contestant with that name, or None if there is none."""
    from benchmarks.shared import contestants

    if name in ("limit", "limitE"):
        cast = contestants.limits(problem)
    elif name == "keras_moe":
        cast = contestants.ours(problem)
    else:
        cast = contestants.others(problem, only=(name,))
    return next((one for one in cast if one.name == name), None)


def bound(dense, moe):
    """Return the upper bound of the peak bytes of `moe`.

    The module's docstring defines it.

    Args:
        dense: dict with `weights` and `peak`.
        moe: dict with `weights` and `peak`.
    """
    return dense["peak"] + 2 * (moe["weights"] - dense["weights"])


def measure_shape(shape, names):
    """Return the records of one shape."""
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
        if bytes_ is None:  # not installed, or for another backend
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
    """Write the records; with `--child`, print one contestant's bytes."""
    parser = command_line.parser_of(__doc__)
    parser.add_argument("--child", choices=NAMES)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_one(args.child, args.only)))
        return
    names = NAMES[:3] if args.no_peers or args.quick else NAMES
    records = []
    for shape in command_line.chosen(args.only, ("S", "M", "L")):
        if args.only or shape != "S":
            records += measure_shape(shape, names)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
