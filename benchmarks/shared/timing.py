"""Time several callables in turns, in the same state of the machine.

Contestants take turns within a round (A B C C B A), so that a machine that
slows down slows all of them. A contestant's time in a round is the mean of its
turns. Ratios are computed within a round, and the published figure is their
median over the rounds, with its quartiles.
"""

import os
import statistics
import time
from typing import NamedTuple

SLOW = 3.0  # a contestant this many times slower than the base has fewer turns
SLOW_ROUNDS = 2


class Ratio(NamedTuple):
    """The median of the ratios of all rounds, and their quartiles."""

    median: float
    low: float
    high: float


class Limits(NamedTuple):
    """The limits of a measurement.

    budget: float. Seconds to spend on the rounds of the fast contestants.
    rounds: pair of ints. The smallest and the largest number of rounds.
    turn: float. Shortest turn, in seconds; a fast call is repeated to fill it.
    """

    budget: float = 10.0
    rounds: tuple = (3, 11)
    turn: float = 0.05


FULL = Limits()
QUICK = Limits(budget=1.0, rounds=(2, 3), turn=0.02)


def interleave(calls, base, limits=FULL, clock=time.perf_counter):
    """Time callables in turns.

    Args:
        calls: dict of callables without arguments, warmed up.
        base: str. The callable that the others are compared with. One that
            takes more than `SLOW` times as long, and more than half a second,
            takes only one turn in each of the first `SLOW_ROUNDS` rounds.
        limits: `Limits` of the measurement.
        clock: function that returns seconds; `time.process_time` if pinned.

    Returns:
        dict of lists of seconds per call, one per round.
    """
    first = {name: _seconds(call, 1, clock) for name, call in calls.items()}
    repeats = {
        name: max(1, int(limits.turn / max(seconds, 1e-9)))
        for name, seconds in first.items()
    }
    slow = {
        name
        for name, seconds in first.items()
        if seconds > max(0.5, SLOW * first[base])
    }
    fast = [name for name in calls if name not in slow]
    a_round = sum(2 * max(limits.turn, first[name]) for name in fast)
    least, most = limits.rounds
    rounds = min(most, max(least, int(limits.budget / max(a_round, 1e-9))))
    times = {name: [] for name in calls}
    for i in range(rounds):
        order = fast + [n for n in calls if n in slow and i < SLOW_ROUNDS]
        order += fast[::-1]
        taken = {name: [] for name in order}
        for name in order:
            taken[name].append(_seconds(calls[name], repeats[name], clock))
        for name, seconds in taken.items():
            times[name].append(statistics.mean(seconds))
    return times


def _seconds(call, repeats, clock):
    """Return the mean seconds per call of `repeats` calls."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def ratio(times, base):
    """Return the `Ratio` of two lists of seconds, one entry per round.

    If one list is shorter, only the rounds that both have are compared.
    """
    ratios = [t / b for t, b in zip(times, base, strict=False)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def first_call(call, clock=time.perf_counter):
    """Return the seconds of the first call: trace, compilation, and run."""
    return _seconds(call, 1, clock)


def clock_of(pinned):
    """Return the clock of a run: CPU time if it is pinned, else wall time."""
    return time.process_time if pinned else time.perf_counter


def pin():
    """Pin this process and its children to one core and one thread."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = "1"
