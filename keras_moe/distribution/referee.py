"""Compare how many batches each process of a job has.

Each process tells process 0 where it is: in which section (an epoch of `fit`,
an `evaluate`, a `predict`), and how many of the section's batches it has begun
and ended. Process 0 compares. No backend takes part, so that this works while
all of them wait for each other.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE = 15.0  # seconds that a process may take to find its data at an end
REMEDY = (
    "Give every process as many batches: cut the data with "
    "`keras_moe.distribution.local_shard`, which leaves out the rest, or pass "
    "the same `steps_per_epoch`, `validation_steps`, or `steps` everywhere."
)


UNEVEN = (
    "Uneven batches: every process of a job must have as many batches as the "
    "others, because each step is one of all processes. Received: {}. "
    f"{REMEDY}"
)


def named_in(text: str) -> str | None:
    """Return the error of uneven batches that a backend's error quotes."""
    pattern = f"Uneven batches: .*?{re.escape(REMEDY)}"
    found = re.search(pattern, text, re.DOTALL)
    return found and found[0]


@dataclass
class Progress:
    """Where a process is.

    Attributes:
        section: Number of sections that it has entered.
        name: Of the section, e.g. "epoch 1 of `fit`".
        planned: Batches of the section, None if it is not known.
        begun, ended: Batches so far.
        finished: Whether no batch of the section follows.
        call: Number of calls of `fit`, `evaluate`, and `predict` begun.
        calls_ended: Number of these that have ended.
        meeting: Number of meetings at which it has waited.
        left: Whether the process is gone.
        found: What it found by itself; None if nothing.
        since: When this changed, of `time.monotonic()`.
    """

    section: int = 0
    name: str = ""
    planned: int | None = None
    begun: int = 0
    ended: int = 0
    finished: bool = False
    call: int = 0
    calls_ended: int = 0
    meeting: int = 0
    left: bool = False
    found: str | None = None
    since: float = field(default_factory=time.monotonic)


def fault(jobs: Mapping[int, Progress], now: float) -> str | None:
    """Return why the processes cannot go on together, or None.

    Args:
        jobs: The progress of each process, by its index.
        now: `time.monotonic()`.
    """
    for job in jobs.values():
        if job.found is not None:
            return job.found
    pairs = [(a, b) for a in jobs.items() for b in jobs.items() if a != b]
    for (i, one), (j, other) in pairs:
        received = _at_once(one, other)
        if received is None and _is_behind(one, other):
            if now - max(one.since, other.since) > PATIENCE:
                received = (_ended(one), _begun(other))
        if received is not None:
            return _message({i: received[0], j: received[1]})
    return None


def _at_once(one, other):
    """What two processes have, if it cannot become equal any more."""
    if one.section == other.section:
        if one.name != other.name:
            return f"is in {one.name}", f"is in {other.name}"
        planned = one.planned, other.planned
        if None not in planned and planned[0] != planned[1]:
            return tuple(f"has {n} batches in {one.name}" for n in planned)
        if one.finished and other.finished and one.ended != other.ended:
            return _ended(one), _ended(other)
    if one.section < other.section and one.calls_ended >= other.call:
        return f"ended after {one.name}", f"is in {other.name}"
    return None


def _is_behind(one, other):
    """Whether `other` waits for a batch that `one` seems not to have."""
    if one.section == other.section and one.finished and not other.finished:
        return other.begun > one.ended
    waits = not other.finished or other.meeting > one.meeting
    return one.left and waits and other.calls_ended < other.call


def _ended(one):
    if not one.name:
        return "has left before its first call"
    gone = ", and has left" if one.left else ""
    return f"had {one.ended} batches in {one.name}{gone}"


def _begun(other):
    if not other.name:
        return "is in its first call"
    return f"is at batch {other.begun} of {other.name}"


def _message(received):
    parts = [f"process {i} {received[i]}" for i in sorted(received)]
    return UNEVEN.format("; ".join(parts))
