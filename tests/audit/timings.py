"""Measure how the suite spends its time.

This pytest plugin writes one JSON line per test into the file that `TIMINGS`
names, with the seconds of the whole test (setup, call, teardown) and the
seconds spent in tracing and compilation, in `fit`, in waiting for other
processes, and in imports::

    TIMINGS=/tmp/jax.jsonl PYTHONPATH=tests/audit KERAS_BACKEND=jax \\
        python -m pytest -p timings
    python tests/audit/timings.py before.jsonl after.jsonl

The second command prints the minutes of each file and backend in both runs,
and the kinds of time within the 30 slowest tests of each.
"""

import collections
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import time

KINDS = ("compile", "fit", "processes", "import")
SLOWEST, FILES = 30, 40  # rows of the tables
spent = collections.Counter()
running = []  # the kinds being timed now, outermost first
jax_intervals = []  # (start, seconds) of JAX's measurements, by their end
tests = {}  # the seconds of the tests that have begun


@contextlib.contextmanager
def timed(kind):
    """Add a block's time to a kind, without the time of timed blocks within."""
    start = time.perf_counter()
    within = sum(spent.values())
    running.append(kind)
    try:
        yield
    finally:
        running.pop()
        passed = time.perf_counter() - start
        spent[kind] += passed - (sum(spent.values()) - within)


def wrap(owner, name, kind):
    """Time every call of a function under a kind."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if running and running[-1] == kind:
            return function(*args, **kwargs)
        with timed(kind):
            return function(*args, **kwargs)

    setattr(owner, name, wrapped)


def pytest_collection_finish(session):
    """Wrap the timed functions after the conftest configured the backend."""
    import keras

    wrap(importlib._bootstrap, "_find_and_load", "import")
    wrap(keras.Model, "fit", "fit")
    wrap(subprocess.Popen, "wait", "processes")
    wrap(subprocess.Popen, "communicate", "processes")
    if "elsewhere" in sys.modules:  # in tests/support, for other backends
        wrap(sys.modules["elsewhere"], "_send", "processes")
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        jax.monitoring.register_event_duration_secs_listener(on_jax_event)
    elif backend == "tensorflow":
        from tensorflow.python.eager.polymorphic_function import (
            tracing_compilation,
        )

        wrap(tracing_compilation, "trace_function", "compile")
    else:
        import torch

        wrap(torch._dynamo.convert_frame, "_compile", "compile")


def on_jax_event(event, seconds, **_):
    """Add JAX's own measurements; an inner trace is part of the outer one."""
    if not event.startswith("/jax/core/compile/"):
        return
    start = time.perf_counter() - seconds
    while jax_intervals and jax_intervals[-1][0] >= start:
        spent["compile"] -= jax_intervals.pop()[1]
    jax_intervals.append((start, seconds))
    spent["compile"] += seconds


def pytest_runtest_logstart(nodeid):
    """Begin a test's record."""
    spent.clear()
    jax_intervals.clear()
    tests[nodeid] = 0.0


def pytest_runtest_logreport(report):
    """Add the time of a phase; after teardown, write the test's line."""
    if hasattr(report, "node"):  # another process ran the test and wrote it
        return
    tests[report.nodeid] += report.duration
    if report.when != "teardown":
        return
    import keras

    line = {
        "backend": keras.backend.backend(),
        "test": report.nodeid,
        "seconds": round(tests.pop(report.nodeid), 3),
        **{kind: round(spent[kind], 3) for kind in KINDS},
    }
    with open(os.environ["TIMINGS"], "a") as file:
        file.write(json.dumps(line) + "\n")


def load(path):
    """Return the records of a file."""
    with open(path) as file:
        return [json.loads(line) for line in file]


def table(rows, header):
    """Print a Markdown table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print()


def minutes_by_file(records):
    """Return the minutes of each (file, backend), and of all files."""
    minutes = collections.Counter()
    for r in records:
        for name in (r["test"].split("::")[0], "all"):
            minutes[name, r["backend"]] += r["seconds"] / 60
    return minutes


def slowest(records):
    """Return the rows of the slowest tests."""
    chosen = sorted(records, key=lambda r: -r["seconds"])[:SLOWEST]
    return [
        [r["test"], r["backend"], f"{r['seconds']:.1f}"]
        + [f"{r[kind]:.1f}" for kind in KINDS]
        for r in chosen
    ]


def main(*paths):
    """Print the tables of one or two runs."""
    runs = [load(path) for path in paths]
    minutes = [minutes_by_file(records) for records in runs]
    backends = sorted({r["backend"] for records in runs for r in records})
    columns = [(b, m) for b in backends for m in minutes]

    def row(name):
        return [name, *(f"{m[name, b]:.2f}" for b, m in columns)]

    files = {name for m in minutes for name, _ in m} - {"all"}
    ordered = sorted(files, key=lambda f: -sum(m[f, b] for b, m in columns))
    when = ("before", "after") if len(runs) == 2 else ("minutes",)
    header = [f"{b} {w}" for b in backends for w in when]
    for name in ordered[FILES:]:
        for b, m in columns:
            m["other files", b] += m[name, b]
    names = [*ordered[:FILES], "other files", "all"]
    table(map(row, names), ["minutes of a worker", *header])
    for records in runs:
        header = ["test", "backend", "seconds", *KINDS]
        table(slowest(records), header)


if __name__ == "__main__":
    main(*sys.argv[1:])
