"""Time calls on a machine that may run other programs, too."""

import statistics
import time
from collections.abc import Callable
from typing import Any

WARM_UP = 2
ROUNDS = 20
MIN_ROUNDS, MAX_ROUNDS = 5, 200
SECONDS = 0.5


def seconds_of(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_alone(call: Callable[[], object]) -> list[float]:
    """Return the times of as many calls as fit into half a second, 5 to 200."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    while len(times) < MIN_ROUNDS or (
        sum(times) < SECONDS and len(times) < MAX_ROUNDS
    ):
        times.append(seconds_of(call))
    return times


def time_by_turns(
    first: Callable[[], object], second: Callable[[], object]
) -> dict[str, Any]:
    """Time two calls, one after the other in each round.

    The order changes from round to round.

    Returns:
        `rounds`; `median_ms` of both; and `ratio`, the median over the rounds
        of the second call's time divided by the first's.
    """
    for _ in range(WARM_UP):
        first(), second()
    pairs = []
    for i in range(ROUNDS):
        if i % 2:
            later = seconds_of(second)
            pairs.append((seconds_of(first), later))
        else:
            pairs.append((seconds_of(first), seconds_of(second)))
    return {
        "rounds": ROUNDS,
        "median_ms": [
            1e3 * statistics.median(times) for times in zip(*pairs, strict=True)
        ],
        "ratio": statistics.median(b / a for a, b in pairs),
    }
