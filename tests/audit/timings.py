"""Measure where the suite's time goes.

A pytest plugin. It writes one JSON line per test into the file that
`TIMINGS` names, with the seconds of the whole test (setup, call, teardown)
and the seconds spent in tracing and compilation, in `fit`, in waiting for
other processes, and in imports::

    TIMINGS=/tmp/jax.jsonl PYTHONPATH=tests/audit KERAS_BACKEND=jax \\
        python -m pytest -p timings
    python tests/audit/timings.py /tmp/*.jsonl

The second command prints minutes per file and backend, and the kinds of time
within the 30 slowest tests.
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
SLOWEST = 30
spent = collections.Counter()
running = []  # the kinds being timed now, outermost first
jax_intervals = []  # (start, seconds) of JAX's measurements, by their end
tests = {}  # the seconds of the tests that have begun


@contextlib.contextmanager
def timed(kind):
    """Add the time of a block to a kind; a block within takes its share."""
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
    """Wrap what is timed, once the conftest has configured the backend."""
    import keras

    wrap(importlib._bootstrap, "_find_and_load", "import")
    wrap(keras.Model, "fit", "fit")
    wrap(subprocess.Popen, "wait", "processes")
    wrap(subprocess.Popen, "communicate", "processes")
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
    """Count JAX's own measurements, an inner trace as part of the outer."""
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
    """Add a phase; after teardown write the test's line."""
    if hasattr(report, "node"):  # another process ran and wrote it
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


def load(paths):
    """Return the records of several files."""
    lines = []
    for path in paths:
        with open(path) as file:
            lines += map(json.loads, file)
    return lines


def table(rows, header):
    """Print a Markdown table."""
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def main(paths):
    """Print both tables."""
    records = load(paths)
    backends = sorted({r["backend"] for r in records})
    files = collections.defaultdict(collections.Counter)
    for r in records:
        files[r["test"].split("::")[0]][r["backend"]] += r["seconds"] / 60
    total = collections.Counter()
    for minutes in files.values():
        total.update(minutes)
    ordered = sorted(files.items(), key=lambda f: -f[1].total())
    table(
        [
            [name, *(f"{m[b]:.2f}" for b in backends), f"{m.total():.2f}"]
            for name, m in [*ordered, ("all", total)]
        ],
        ["worker minutes", *backends, "sum"],
    )
    print()
    slowest = sorted(records, key=lambda r: -r["seconds"])[:SLOWEST]
    table(
        [
            [r["test"], r["backend"], f"{r['seconds']:.1f}"]
            + [f"{r[kind]:.1f}" for kind in KINDS]
            for r in slowest
        ],
        ["test", "backend", "seconds", *KINDS],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
