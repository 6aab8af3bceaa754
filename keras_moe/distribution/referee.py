"""Compare the numbers of batches of all processes of a job.

Each process sends its progress to process 0: the section (an epoch of `fit`, an
`evaluate`, a `predict`), and the numbers of the section's batches that have
begun and ended. Process 0 compares them. No backend is used, so that this works
while all processes wait for each other in one.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE = 15.0  # seconds that a process may take to reach its data's end
REMEDY = (
    "Give every process the same number of batches: divide the data with "
    "`keras_moe.distribution.local_shard`, which drops the remainder, or pass "
    "the same `steps_per_epoch`, `validation_steps`, or `steps` in every "
    "process."
)


UNEVEN = (
    "Uneven batches: every process of a job must have as many batches as the "
    "others, because all processes take part in each step. Received: {}. "
    f"{REMEDY}"
)


def named_in(text: str) -> str | None:
    """Return the message about uneven batches in a backend's error, if any."""
    pattern = f"Uneven batches: .*?{re.escape(REMEDY)}"
    found = re.search(pattern, text, re.DOTALL)
    return found[0] if found else None


@dataclass
class Progress:
    """Hold the progress of a process.

    Attributes:
        section: Number of sections that the process has entered.
        name: Name of the section, such as "epoch 1 of `fit`".
        planned: Number of batches of the section; `None` if it is unknown.
        begun, ended: Number of the section's batches that have begun and ended.
        finished: Whether the section has no further batches.
        call: Number of calls of `fit`, `evaluate`, and `predict` that have
            begun.
        calls_ended: Number of those calls that have ended.
        meeting: Number of meetings at which the process has waited.
        left: Whether the process has ended.
        found: Message about a fault that the process found itself, or `None`.
        since: Time of the last change, from `time.monotonic()`.
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
    """Return why the processes cannot continue together, or `None`.

    Args:
        jobs: Dict from the index of each process to its progress.
        now: The time, from `time.monotonic()`.
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


def _at_once(one: Progress, other: Progress) -> tuple[str, str] | None:
    """Describe two processes whose progress can no longer become equal."""
    if one.section == other.section:
        if one.name != other.name:
            return f"is in {one.name}", f"is in {other.name}"
        planned = one.planned, other.planned
        if None not in planned and planned[0] != planned[1]:
            first, second = (f"has {n} batches in {one.name}" for n in planned)
            return first, second
        if one.finished and other.finished and one.ended != other.ended:
            return _ended(one), _ended(other)
    if one.section < other.section and one.calls_ended >= other.call:
        return f"ended after {one.name}", f"is in {other.name}"
    return None


def _is_behind(one: Progress, other: Progress) -> bool:
    """Return whether `other` waits for a batch that `one` may not have."""
    if one.section == other.section and one.finished and not other.finished:
        return other.begun > one.ended
    waits = not other.finished or other.meeting > one.meeting
    return one.left and waits and other.calls_ended < other.call


def _ended(one: Progress) -> str:
    if not one.name:
        return "has left before its first call"
    gone = ", and has left" if one.left else ""
    return f"had {one.ended} batches in {one.name}{gone}"


def _begun(other: Progress) -> str:
    if not other.name:
        return "is in its first call"
    return f"is at batch {other.begun} of {other.name}"


def _message(received: Mapping[int, str]) -> str:
    parts = [f"process {i} {received[i]}" for i in sorted(received)]
    return UNEVEN.format("; ".join(parts))
