"""Test that processes with uneven batches end with an error that names them.

The first tests have the referee's decisions by hand. The last tests start
processes of a backend that train together.
"""

import socket
import subprocess
import sys
import time

import pytest
from backend import BACKEND
from paths import SUPPORT

from keras_moe.distribution import (
    agreement,
    environment,
    even_batches,
    referee,
)
from keras_moe.distribution.referee import Progress, fault
from keras_moe.distribution.watching import Referee, Watch

anywhere = pytest.mark.skipif(
    BACKEND != "torch",
    reason="no backend is used; torch runs it",
)
EPOCH = "epoch 1 of `fit`"


def at(begun, ended, **others):
    """Return the progress of a process that is in the first epoch of `fit`."""
    known = {"section": 1, "name": EPOCH, "call": 1, "meeting": 1, "since": 0.0}
    return Progress(begun=begun, ended=ended, **{**known, **others})


def found(one, other, now=referee.PATIENCE + 1):
    return fault({0: one, 1: other}, now)


@anywhere
@pytest.mark.parametrize(
    "one, other",
    [
        (at(0, 0, planned=3), at(0, 0, planned=4)),
        (at(3, 3, finished=True), at(4, 4, finished=True)),
        (at(3, 3, finished=True), at(4, 3)),
        (at(4, 3, finished=True), at(4, 4, finished=True)),
        (at(2, 2, left=True), at(3, 2)),
        (
            at(3, 3, finished=True, left=True),
            at(3, 3, finished=True, meeting=2),
        ),
        (at(3, 3, calls_ended=1), at(0, 0, section=2, name="epoch 2 of `fit`")),
        (Progress(left=True, since=0.0), at(0, 0)),
        (Progress(left=True, since=0.0), Progress(call=1, since=0.0)),
    ],
    ids=[
        "planned",
        "ended",
        "waits",
        "ran out",
        "left",
        "left at the end",
        "epochs",
        "never came",
        "left before the first call",
    ],
)
def test_uneven_batches_are_found(one, other):
    text = found(one, other)
    assert text.startswith("Uneven batches: ")
    assert "process 0 " in text and "process 1 " in text
    assert "local_shard" in text


@anywhere
@pytest.mark.parametrize(
    "one, other, now",
    [
        (at(0, 0, planned=3), at(0, 0, planned=3), 1e6),
        (at(0, 0, planned=3), at(0, 0), 1e6),
        (at(2, 1), at(1, 0), 1e6),
        (at(3, 3, finished=True), at(2, 2), 1e6),
        (at(3, 3, finished=True), at(4, 3), referee.PATIENCE - 1),
        (at(3, 3, finished=True, left=True, calls_ended=1), Progress(), 1e6),
        (
            at(3, 3, finished=True, left=True, calls_ended=1),
            at(3, 3, finished=True, calls_ended=1),
            1e6,
        ),
        (at(3, 3, finished=True), at(0, 0, section=2, name="`evaluate`"), 1e6),
    ],
    ids=[
        "planned alike",
        "one has no plan",
        "one is slower",
        "one is behind",
        "one waits for data",
        "one has not begun",
        "both are done",
        "one is in the next section",
    ],
)
def test_even_batches_are_left_alone(one, other, now):
    assert found(one, other, now) is None
    assert fault({0: other, 1: one}, now) is None


def watches_of_two():
    server = Referee(2, "token")
    found = [Watch("localhost", server.port, "token", i) for i in range(2)]
    assert server.has_all(10)
    for part in (server, *found):
        part.start()
    return found


@anywhere
def test_processes_meet_and_receive_a_fault():
    """Two clients in this process simulate two processes."""
    one, other = watches_of_two()
    try:
        for watch in (one, other):
            watch.progress.section = watch.progress.call = 1
            watch.progress.name = EPOCH
            watch.progress.planned = 3 + watch.index
            watch.raised = True  # so that no thread ends this process
        with pytest.raises(RuntimeError, match="Uneven batches"):
            other.progress.meeting += 1
            other._send()
            one.meet()
        assert "process 1 has 4 batches" in one.fault
    finally:
        one.fault = other.fault = None  # so that Python's exit has no error


@anywhere
def test_the_fault_of_one_process_reaches_all():
    one, other = watches_of_two()
    try:
        other.raised = True  # so that no thread ends this process
        quoted = referee.UNEVEN.format("a step without rows in process 0")
        text = referee.named_in(f"assertion failed: [{quoted}] [Condition 0]")
        assert text == quoted
        with pytest.raises(RuntimeError, match="rows in process 0"):
            one.tell(text)
        with other.changed:
            other.changed.wait_for(lambda: other.fault, 10)
        assert other.fault == quoted
        assert referee.named_in("another error") is None
    finally:
        one.fault = other.fault = None  # so that Python's exit has no error


@anywhere
def test_a_process_that_ends_has_left():
    """The referee is informed before the backend waits for the others."""
    server = Referee(1, "token")
    watch = Watch("localhost", server.port, "token", 0)
    with watch.connection:
        watch._leave()
        end = time.monotonic() + 10
        while not server.jobs[0].left and time.monotonic() < end:
            time.sleep(0.01)
        assert server.jobs[0].left


@anywhere
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_without_addresses_or_ways_to_process_0(monkeypatch, processes):
    """Process 0 sends its address, and the second of two does not connect."""
    place = agreement.Place(0, processes, "")
    monkeypatch.setattr(agreement, "place", lambda: place)
    monkeypatch.setattr(agreement, "from_first", lambda numbers, model: numbers)
    monkeypatch.setattr(even_batches, "CONNECT", 0.2)
    if processes == 1:
        assert even_batches._connected(None).connection.getpeername()
        return
    with pytest.warns(UserWarning, match="not every process can reach"):
        assert even_batches._connected(None) is None


@anywhere
def test_a_client_with_another_token_is_refused():
    server = Referee(1, "token")
    with socket.create_connection(("localhost", server.port)) as stranger:
        stranger.sendall(b"other 0\n")
        assert stranger.recv(1) == b""
    assert not server.connections


@anywhere
def test_a_busy_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port}"):
            environment._check_free(f"127.0.0.1:{port}")


def train(tmp_path, kind):
    """Start two processes; return both outputs and the exit code."""
    command = [sys.executable, "-m", "keras_moe_cli", "launch"]
    command += ["--backend", BACKEND, "--logs", str(tmp_path)]
    done = subprocess.run(
        [*command, str(SUPPORT / "uneven_batches.py"), kind],
        cwd=SUPPORT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    other = (tmp_path / "process1.log").read_text(errors="replace")
    return done.stdout + done.stderr, other, done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["arrays", "generator", "epochs"])
def test_uneven_batches_end_every_process(tmp_path, kind):
    """The numbers of batches are uneven, or the numbers of epochs are."""
    first, other, code = train(tmp_path, kind)
    assert code == 1
    for words in (first, other):
        assert "RuntimeError: Uneven batches" in words, words[-2000:]
        assert "trained" not in words
        if BACKEND == "tensorflow" and kind == "generator":
            # TensorFlow gives empty batches to a process whose data end.
            assert "step without rows in process 0" in words
        else:
            assert "process 1" in words


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_the_process_that_remains_names_one_that_left(tmp_path, index):
    """A process ends before its first `fit`; on JAX, it waits for the other."""
    *both, code = train(tmp_path, f"exits {index}")
    assert code == 1
    assert "RuntimeError: Uneven batches" in both[1 - index]
    assert "first call" in both[1 - index] or "has left" in both[1 - index]
    assert "trained" not in both[1 - index]


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="only JAX waits at its end")
def test_a_process_that_fails_before_its_first_fit_ends_the_others(tmp_path):
    first, other, code = train(tmp_path, "raises 0")
    assert code == 1 and "ValueError: before the first fit" in first
    assert "process 0 has left before its first call" in other


@pytest.mark.slow
def test_even_batches_train(tmp_path):
    first, other, code = train(tmp_path, "even")
    assert code == 0, first[-2000:]
    assert "trained" in first and "trained" in other


@pytest.mark.skipif(BACKEND != "torch", reason="starts PyTorch")
def test_planned_batches_are_compared_before_the_first_step(tmp_path):
    begun = time.monotonic()
    first, other, code = train(tmp_path, "arrays")
    assert code == 1 and time.monotonic() - begun < 60
    assert "process 0 has 3 batches in epoch 1 of `fit`" in first
    assert "process 1 has 4 batches in epoch 1 of `fit`" in other
