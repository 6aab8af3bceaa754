"""Send a process's progress to process 0, and receive whether to continue.

Each connection has a thread. If the main thread is inside a step that waits for
another process forever, the thread prints the error and ends this process.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from keras_moe.distribution.referee import UNEVEN, Progress, fault

PAUSE = 0.25  # seconds between two messages
CONNECT = 20.0  # seconds to reach the referee
GRACE = 1.5  # seconds in which every process can print the error
DEPARTED = UNEVEN.format("process 0 has left, process {} is in {}")


class Referee:
    """Compare the progress of all processes, as the server in process 0.

    Args:
        processes: Number of processes of the job.
        token: Text that a process must send first; other connections are
            closed.
    """

    def __init__(self, processes: int, token: str):
        self.token = token
        self.jobs = {i: Progress() for i in range(processes)}
        self.connections: dict[int, socket.socket] = {}
        self.lock = threading.Lock()
        self.server = socket.create_server(("", 0))
        self.port = self.server.getsockname()[1]
        _in_background(self._accept)

    def has_all(self, seconds: float) -> bool:
        """Return whether all processes connect within some seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.connections) < len(self.jobs):
            time.sleep(0.02)
        return len(self.connections) == len(self.jobs)

    def start(self) -> None:
        """Start to compare."""
        _in_background(self._compare)

    def _accept(self) -> None:
        while True:
            connection, _ = self.server.accept()
            _in_background(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        lines = connection.makefile()
        token, _, index = lines.readline().strip().partition(" ")
        if token != self.token:
            connection.close()
            return
        process = int(index)
        with self.lock:
            self.connections[process] = connection
        with contextlib.suppress(OSError, ValueError):
            for line in lines:
                with self.lock:
                    self.jobs[process] = Progress(**json.loads(line))
        with self.lock:
            self.jobs[process].left = True
            self.jobs[process].since = time.monotonic()

    def _compare(self) -> None:
        met = 0
        while True:
            time.sleep(0.02)
            with self.lock:
                found = fault(self.jobs, time.monotonic())
                meeting = min(job.meeting for job in self.jobs.values())
                if found is not None:
                    self._tell({"fault": found})
                    return
                if meeting > met:
                    met = meeting
                    self._tell({"meeting": met})

    def _tell(self, news: dict[str, Any]) -> None:
        # Process 0 comes last, because the referee ends with it.
        for process in sorted(self.connections, reverse=True):
            connection = self.connections[process]
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(news).encode() + b"\n")


class Watch:
    """Report the progress of this process, as a client of the referee.

    Process 0 has a `Watch`, too.

    Args:
        host, port: Address of the referee.
        token: Token of the referee.
        index: Index of this process.

    Raises:
        OSError: If the referee cannot be reached.
    """

    def __init__(self, host: str, port: int, token: str, index: int):
        self.index = index
        self.progress = Progress()
        self.met = 0
        self.fault: str | None = None
        self.raised = False
        self.changed = threading.Condition()
        self.connection = socket.create_connection((host, port), CONNECT)
        self.connection.settimeout(None)
        self.connection.sendall(f"{token} {index}\n".encode())

    def start(self) -> None:
        """Start to send and to receive."""
        _in_background(self._listen)
        _in_background(self._report)
        atexit.register(self._leave)

    def meet(self) -> None:
        """Wait until every process calls this method.

        Raises:
            RuntimeError: If a process can no longer call it.
        """
        self.progress.meeting += 1
        self._send()
        with self.changed:
            self.changed.wait_for(
                lambda: self.fault or self.met >= self.progress.meeting
            )
        self.check()

    def check(self) -> None:
        """Raise a RuntimeError if the processes cannot continue together."""
        if self.fault:
            self.raised = True
            raise RuntimeError(self.fault)

    def tell(self, found: str) -> None:
        """End every process with a message about a fault found here.

        Raises:
            RuntimeError: In every case, with the message.
        """
        self.progress.found = found
        self._send()
        with self.changed:
            self.changed.wait_for(lambda: self.fault, GRACE)
            self.fault = self.fault or found
        self.check()

    def _send(self) -> None:
        now = asdict(self.progress)
        del now["since"]
        line = json.dumps(now).encode() + b"\n"
        with contextlib.suppress(OSError), self.changed:
            if line != getattr(self, "sent", None):
                self.connection.sendall(line)
                self.sent = line

    def _report(self) -> None:
        while not self.fault:
            self._send()
            time.sleep(PAUSE)

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self.connection.makefile() as lines:
            for line in lines:
                news = json.loads(line)
                if "fault" in news:
                    self._end(news["fault"])
                    return
                with self.changed:
                    self.met = news["meeting"]
                    self.changed.notify_all()
        while self._needs_no_one():
            time.sleep(PAUSE)
        where = self.progress.name or "its first call"
        self._end(DEPARTED.format(self.index, where))

    def _needs_no_one(self) -> bool:
        place = self.progress
        met = self.met >= place.meeting
        return place.calls_ended >= place.call or (place.finished and met)

    def _end(self, found: str) -> None:
        """Make the main thread raise; end the process if it cannot."""
        with self.changed:
            self.fault = found
            waiting = self.met < self.progress.meeting
            self.changed.notify_all()
        if waiting:
            return
        print(f"RuntimeError: {found}", file=sys.stderr, flush=True)
        time.sleep(GRACE)
        if not self.raised:
            sys.stdout.flush()
            os._exit(1)

    def _leave(self) -> None:
        """Report that this process makes no further call.

        It is reported before the backend waits for all processes at exit. After
        a fault, the process ends without waiting for the others.
        """
        self.progress.left = True
        self._send()
        if self.fault:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(GRACE)  # a launcher stops the others at once
            os._exit(1)


def _in_background(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()
