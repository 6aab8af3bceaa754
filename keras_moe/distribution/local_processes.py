"""Processes of this host that live and die together."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

GRACE = 5.0  # seconds between asking a process to end and ending it
PAUSE = 0.05
# Runs before the script, in its place: on Linux the kernel then ends the
# process when the one that started it is gone, even by kill -9.
TETHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Failure:
    """The first process that ended otherwise than with 0.

    Attributes:
        index: which one, of those that were started.
        code: its exit code; 128 and the signal where one ended it, as shells
            have it.
    """

    index: int
    code: int


def run_together(
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    logs: Sequence[pathlib.Path | None],
    meanwhile: Callable[[list[int | None]], None] = lambda codes: None,
) -> Failure | None:
    """Runs a Python command once in each environment, all at a time.

    Args:
        command: what follows `python`.
        environments: of each process, whole.
        logs: the file to which each one's output is appended; None leaves it
            where this process writes.
        meanwhile: Called again and again with each one's exit code, None
            while it runs.

    Returns:
        None where all ended with 0, else who failed first. The others, which
        may wait for it forever, were stopped: asked first, and killed after
        `GRACE` seconds. So they are, too, whatever ends this function.
    """
    started: list[subprocess.Popen] = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            started.append(_start(command, environment, log))
        return _wait(started, meanwhile)
    finally:
        stop(started)


def _start(command, environment, log):
    """A session of its own each: Ctrl-C reaches this process alone, and a
    process is stopped together with those it started."""
    tether = [sys.executable, "-ISc", TETHER, str(os.getpid())]
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(
            [*tether, sys.executable, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _wait(started, meanwhile):
    while True:
        codes = [process.poll() for process in started]
        meanwhile(codes)
        for index, code in enumerate(codes):
            if code:
                return Failure(index, 128 - code if code < 0 else code)
        if None not in codes:
            return None
        time.sleep(PAUSE)


def stop(started: Sequence[subprocess.Popen]) -> None:
    """Ends processes and what they started, in at most `GRACE` seconds."""
    for process in started:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + GRACE
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        # What it started may outlive it.
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end a block as an exception does.

    A program that is ended by them runs no `finally`. Only the main thread
    hears signals; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number, frame):
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
