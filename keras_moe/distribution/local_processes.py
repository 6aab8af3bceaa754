"""Run processes on this host, and stop all of them if one fails."""

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
from types import FrameType

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PAUSE = 0.05
# Runs before the script, in the same process. On Linux, the kernel then kills
# the process when its parent ends, even by kill -9.
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
    """Describe the first process that failed.

    Attributes:
        index: Index of the process among those that were started.
        code: Exit code, not 0. As in shells, it is 128 plus the number of the
            signal if a signal ended the process.
    """

    index: int
    code: int


def run_together(
    command: Sequence[str],
    environments: Sequence[dict[str, str]],
    logs: Sequence[pathlib.Path | None],
    meanwhile: Callable[[list[int | None]], None] = lambda codes: None,
) -> Failure | None:
    """Run a Python command in several processes at the same time.

    If a process fails, the others, which might wait for it forever, are
    stopped: by SIGTERM, and by SIGKILL after `GRACE` seconds. They are also
    stopped if this function raises an error.

    Args:
        command: Arguments of `python`.
        environments: All environment variables of each process.
        logs: Files to which the outputs of the processes are appended. A
            process with `None` shares the output of this process.
        meanwhile: Function that is called repeatedly with a list of the
            processes' exit codes, `None` for those that run. Default: a
            function that does nothing.

    Returns:
        `None` if all processes ended with 0, else the first `Failure`.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            started.append(_start(command, environment, log))
        return _wait(started, meanwhile)
    finally:
        stop(started)


def _start(
    command: Sequence[str],
    environment: dict[str, str],
    log: pathlib.Path | None,
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own.

    Therefore Ctrl-C reaches only this process, and a process can be stopped
    together with those that it started.
    """
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


def _wait(
    started: Sequence[subprocess.Popen[bytes]],
    meanwhile: Callable[[list[int | None]], None],
) -> Failure | None:
    while True:
        codes = [process.poll() for process in started]
        meanwhile(codes)
        for index, code in enumerate(codes):
            if code:
                return Failure(index, 128 - code if code < 0 else code)
        if None not in codes:
            return None
        time.sleep(PAUSE)


def stop(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop processes and those they started, within `GRACE` seconds."""
    for process in started:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + GRACE
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        # Processes that it started may still run.
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `SystemExit` inside a block.

    By default, they end a program without running its `finally` clauses. Only
    the main thread receives signals; in other threads nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
