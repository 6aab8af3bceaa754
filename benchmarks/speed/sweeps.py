"""Time one block with more experts, more tokens, and skewed routing.

    KERAS_BACKEND=torch python benchmarks/speed/sweeps.py --only experts

`run_suite.py` runs it as the part `sweeps`.

- `experts`: E from 8 to 128 at the same T, D, F, and K.
- `tokens`: T from 256 to 16,384.
- `skewed`: 60% of the pairs go to one expert, compared with balanced routing of
  the same number of pairs by the same block.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import check_and_time, command_line, contestants, shapes
from benchmarks.shared.random_problem import draw

SWEEPS = ("experts", "skewed", "tokens")
QUICK = SWEEPS[:1]
PEER = "KerasHub Qwen3-MoE"


def experts(args):
    """Return the times at each E, with the limits and KerasHub's forward."""
    records = []
    for e, shape in shapes.FLAT.items():
        if args.quick and e not in shapes.FLAT_QUICK:
            continue
        problem = draw(shape)
        cast = contestants.limits(problem) + contestants.ours(problem)
        if not (args.no_peers or args.quick):
            cast += [
                peer._replace(kinds=("forward",))
                for peer in contestants.others(problem, only=(PEER,))
            ]
        kinds = ("forward",) if args.quick else ("forward", "train")
        records += _cell(args, cast, kinds, "experts", E=e)
    return records


def tokens(args):
    """Return the times at each T, with the limits."""
    records = []
    for t, shape in shapes.TOKENS.items():
        problem = draw(shape)
        cast = contestants.limits(problem) + contestants.ours(problem)
        records += _cell(args, cast, ("forward", "f+b"), "tokens", T=t)
    return records


def skewed(args):
    """Return the times of balanced and skewed routing, with their limits."""
    records = []
    for name, shape in shapes.SKEWED.items():
        cast = []
        for suffix, skew in (("", False), (", skewed", True)):
            problem = draw(shape._replace(skewed=skew))
            both = contestants.limits(problem) + contestants.ours(problem)
            cast += [c._replace(name=c.name + suffix) for c in both]
        # One `limit` is enough, because it has the same rows.
        cast = [c for c in cast if c.name != "limit, skewed"]
        records += _cell(args, cast, ("forward", "train"), "skewed", shape=name)
    return records


def _cell(args, cast, kinds, sweep, **labels):
    records = check_and_time.measure_cell(
        cast,
        kinds,
        quick=args.quick,
        pinned=args.pinned,
        part=sweep,
        **labels,
    )
    check_and_time.forget()
    return records


SWEEPS_BY_NAME = {"experts": experts, "tokens": tokens, "skewed": skewed}


def main():
    """Write the records of every selected sweep."""
    args = command_line.parser_of(__doc__).parse_args()
    records = []
    for name in command_line.chosen(args.only, QUICK if args.quick else SWEEPS):
        records += SWEEPS_BY_NAME[name](args)
    command_line.write(records, args.out)


if __name__ == "__main__":
    main()
