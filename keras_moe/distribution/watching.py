"""Tell process 0 where this process is, and hear whether all can go on.

One thread for each connection. The main thread may be inside a step that waits
for another process forever: then the thread writes the error and ends this
process.
"""

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict

from keras_moe.distribution.referee import UNEVEN, Progress, fault

PAUSE = 0.25  # seconds between two messages
CONNECT = 20.0  # seconds to reach the referee
GRACE = 1.5  # seconds in which every process can write the error
DEPARTED = UNEVEN.format("process 0 has left, process {} is in {}")


class Referee:
    """The server of process 0.

    Args:
        processes: How many the job has.
        token: What a process sends first; others are turned away.
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
        """Wait until every process is connected; return whether all are."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.connections) < len(self.jobs):
            time.sleep(0.02)
        return len(self.connections) == len(self.jobs)

    def start(self) -> None:
        """Begin to compare."""
        _in_background(self._compare)

    def _accept(self):
        while True:
            connection, _ = self.server.accept()
            _in_background(self._serve, connection)

    def _serve(self, connection):
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

    def _compare(self):
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

    def _tell(self, news):
        # Process 0, whose end is the referee's, hears it last.
        for process in sorted(self.connections, reverse=True):
            connection = self.connections[process]
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(news).encode() + b"\n")


class Watch:
    """The client of each process, process 0 included.

    Args:
        host, port: Of the referee.
        token: Of the referee.
        index: Of this process.

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
        """Begin to tell and to hear."""
        _in_background(self._listen)
        _in_background(self._report)
        atexit.register(self._leave)

    def meet(self) -> None:
        """Wait until every process is here.

        Raises:
            RuntimeError: If one of them cannot come any more.
        """
        self.progress.meeting += 1
        self._send()
        with self.changed:
            self.changed.wait_for(
                lambda: self.fault or self.met >= self.progress.meeting
            )
        self.check()

    def check(self) -> None:
        """Raise what was found, if anything was."""
        if self.fault:
            self.raised = True
            raise RuntimeError(self.fault)

    def tell(self, found: str) -> None:
        """End every process with what this one found by itself.

        Raises:
            RuntimeError: With it.
        """
        self.progress.found = found
        self._send()
        with self.changed:
            self.changed.wait_for(lambda: self.fault, GRACE)
            self.fault = self.fault or found
        self.check()

    def _send(self):
        now = asdict(self.progress)
        del now["since"]
        line = json.dumps(now).encode() + b"\n"
        with contextlib.suppress(OSError), self.changed:
            if line != getattr(self, "sent", None):
                self.connection.sendall(line)
                self.sent = line

    def _report(self):
        while not self.fault:
            self._send()
            time.sleep(PAUSE)

    def _listen(self):
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

    def _needs_no_one(self):
        place = self.progress
        met = self.met >= place.meeting
        return place.calls_ended >= place.call or (place.finished and met)

    def _end(self, found):
        """Let the main thread raise; end the process if it cannot."""
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

    def _leave(self):
        """Do not wait, as backends do, for processes that cannot come.

        A backend may wait at the end for all processes: each hears before
        that this one makes no further call.
        """
        self.progress.left = True
        self._send()
        if self.fault:
            sys.stdout.flush()
            sys.stderr.flush()
            time.sleep(GRACE)  # a launcher would stop the others at once
            os._exit(1)


def _in_background(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()
