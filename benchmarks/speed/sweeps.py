"""Flat in the experts? From few tokens to many? Skewed as fast as balanced?

`KERAS_BACKEND=torch python benchmarks/sweeps.py --only experts`; `run.py` runs
it. T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k.

`experts`: E from 8 to 128 at the same T, D, F and K. `tokens`: T from 256 to
16,384. `skewed`: 60 % of the pairs go to one expert, against balanced routing
of as many pairs by the same block.
"""

import cells
import contestants
import options
import shapes
from problem import draw

SWEEPS = ("experts", "skewed", "tokens")
QUICK = SWEEPS[:1]
PEER = "KerasHub Qwen3-MoE"


def experts(args):
    """Time over `limitE` and `limit` as E grows; KerasHub's forward beside."""
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
    """Time over `limit` as T grows."""
    records = []
    for t, shape in shapes.TOKENS.items():
        problem = draw(shape)
        cast = contestants.limits(problem) + contestants.ours(problem)
        records += _cell(args, cast, ("forward", "f+b"), "tokens", T=t)
    return records


def skewed(args):
    """Balanced and skewed routing, each with its own limits, by turns."""
    records = []
    for name, shape in shapes.SKEWED.items():
        cast = []
        for suffix, skew in (("", False), (", skewed", True)):
            problem = draw(shape._replace(skewed=skew))
            both = contestants.limits(problem) + contestants.ours(problem)
            cast += [c._replace(name=c.name + suffix) for c in both]
        # One `limit` is enough: it has the same rows.
        cast = [c for c in cast if c.name != "limit, skewed"]
        records += _cell(args, cast, ("forward", "train"), "skewed", shape=name)
    return records


def _cell(args, cast, kinds, sweep, **labels):
    records = cells.measure_cell(
        cast,
        kinds,
        quick=args.quick,
        pinned=args.pinned,
        part=sweep,
        **labels,
    )
    cells.forget()
    return records


SWEEPS_BY_NAME = {"experts": experts, "tokens": tokens, "skewed": skewed}


def main():
    """Writes the records of every sweep asked for."""
    args = options.parser_of(__doc__).parse_args()
    records = []
    for name in options.chosen(args.only, QUICK if args.quick else SWEEPS):
        records += SWEEPS_BY_NAME[name](args)
    options.write(records, args.out)


if __name__ == "__main__":
    main()
