"""Compare the speed of a block in this checkout and in another revision.

    KERAS_BACKEND=jax python benchmarks/speed/revisions.py REVISION

The script checks REVISION out into a temporary folder and starts two processes
on one core, one per version of the package. Both run the benchmark code of this
checkout. They take turns (A B B A), so that a machine that slows down slows
both. The figure is the CPU time of this checkout divided by that of the
revision: the median over the rounds, with its quartiles.
"""

import argparse
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.shared import timing
from benchmarks.shared.shapes import SHAPES

NAMES = ("S", "M", "L", "D1")
KINDS = {"D1": ("forward",)}
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def main():
    """Print one line per shape and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="what `git worktree add` accepts")
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--budget", type=float, default=10.0, help="seconds")
    options = parser.parse_args()
    timing.pin()
    with checked_out(options.revision) as folder:
        for name in options.only.split(","):
            for kind in KINDS.get(name, ("forward", "f+b", "train")):
                found = compare(folder, name, kind, options.budget)
                figures = " ".join(f"{value:.3f}" for value in found)
                print(f"{name:3} {kind:8} {figures}", flush=True)


@contextlib.contextmanager
def checked_out(revision):
    """Yield a folder with the files of a revision."""
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent, "revision")
        git = ("git", "-C", str(REPOSITORY), "worktree")
        add = (*git, "add", "--quiet", "--detach", str(folder), revision)
        subprocess.run(add, check=True)
        try:
            yield folder
        finally:
            subprocess.run((*git, "remove", "--force", str(folder)), check=True)


def compare(folder, name, kind, budget):
    """Return the `Ratio` of this checkout's time to the time of `folder`."""
    with contextlib.ExitStack() as stack:
        calls = {
            version: stack.enter_context(running(root, name, kind))
            for version, root in (("old", folder), ("new", REPOSITORY))
        }
        limits = timing.Limits(budget=budget, rounds=(5, 41))
        times = take_turns(calls, limits)
    return timing.ratio(times["new"], times["old"])


def take_turns(calls, limits):
    """Return the seconds per call of each version, one per round."""
    repeats = max(1, int(limits.turn / calls["old"](1)))
    calls["new"](1)
    times = {version: [] for version in calls}
    end = time.perf_counter() + limits.budget
    least, most = limits.rounds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        taken = {version: 0.0 for version in calls}
        for version in ("old", "new", "new", "old"):
            taken[version] += calls[version](repeats) / 2
        for version, seconds in taken.items():
            times[version].append(seconds)
    return times


@contextlib.contextmanager
def running(root, name, kind):
    """Yield a function from the number of calls to the seconds per call."""
    command = (sys.executable, __file__, "--serve", str(root), name, kind)
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def seconds(repeats):
        print(repeats, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    root_used = process.stdout.readline().strip()
    if pathlib.Path(root_used) != root:
        raise SystemExit(f"error: {root} was to be timed, not {root_used}.")
    try:
        yield seconds
    finally:
        process.stdin.close()
        process.wait()


def serve(root, name, kind):
    """Read numbers of calls, and print the seconds per call for each.

    `keras_moe` is imported from `root`. `benchmarks` is already imported from
    this checkout, so that an old revision does not need these benchmarks.
    """
    sys.path.insert(0, root)
    import keras_moe
    from benchmarks.shared import contestants
    from benchmarks.shared.random_problem import draw

    (block,) = contestants.ours(draw(SHAPES[name]))
    call = block.call(kind)
    for _ in range(3):
        call()
    print(pathlib.Path(keras_moe.__file__).parents[1], flush=True)
    for line in sys.stdin:
        repeats = int(line)
        start = time.process_time()
        for _ in range(repeats):
            call()
        print((time.process_time() - start) / repeats, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
