"""Timing by turns, and the peak memory of a call.

Contestants take turns within a round, A B C C B A, so that a machine that
slows down slows all of them. A contestant's time in a round is the mean of its
turns, a ratio is taken within a round, and the figure is the median over the
rounds, with its quartiles.
"""

import ctypes
import gc
import os
import re
import statistics
import time
from typing import NamedTuple

SLOW = 3.0  # as many times the base: fewer turns
SLOW_ROUNDS = 2


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and their quartiles."""

    median: float
    low: float
    high: float


class Limits(NamedTuple):
    """How long to measure.

    budget: seconds to spend on the fast contestants' rounds.
    rounds: the least and the most rounds.
    turn: seconds a turn lasts at least; a fast call is repeated to fill it.
    """

    budget: float = 10.0
    rounds: tuple = (3, 11)
    turn: float = 0.05


FULL = Limits()
QUICK = Limits(budget=1.0, rounds=(2, 3), turn=0.02)


def interleave(calls, base, limits=FULL, clock=time.perf_counter):
    """Times callables by turns.

    Args:
        calls: dict of callables without arguments, warmed up.
        base: name of the one that says who is slow: whoever takes more than
            `SLOW` times as long, and more than half a second, takes one turn
            in each of the first `SLOW_ROUNDS` rounds.
        limits: how long.
        clock: seconds; `time.process_time` for pinned runs.

    Returns:
        dict of lists of seconds a call, one a round.
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
    """Seconds a call, over as many as `repeats`."""
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def ratio(times, base):
    """Returns the `Ratio` of two lists of a round's seconds each.

    A contestant that took part in fewer rounds is compared in those.
    """
    ratios = [t / b for t, b in zip(times, base, strict=False)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def first_call(call, clock=time.perf_counter):
    """Returns seconds of the first call: trace, compile and one run."""
    return _seconds(call, 1, clock)


# --- memory -----------------------------------------------------------------


def resident():
    """Returns the bytes in memory, after freed ones are given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def peak_resident(call):
    """Returns the most bytes in memory during one call.

    The kernel's high-water mark is set back first (Linux:
    `/proc/self/clear_refs`). Call it in a process of its own: allocators keep
    what they once had.
    """
    resident()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    call()
    return _status("VmHWM")


def _status(field):
    with open("/proc/self/status") as file:
        found = re.search(rf"{field}:\s+(\d+) kB", file.read())
    assert found
    return int(found.group(1)) * 1024


def clock_of(pinned):
    """Returns the clock of a run: CPU time where it is pinned, else wall."""
    return time.process_time if pinned else time.perf_counter


def pin():
    """Keeps this process, and its children, on one core and one thread."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = "1"
