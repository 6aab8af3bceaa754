"""Run scripts of this folder on other backends, in one process per backend.

Importing a backend takes longer than most checks, so the process is started
once and serves every check of this pytest process.
"""

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback


def run_on(backend, script, *arguments):
    """Call `main(*arguments)` of a script of this folder on a backend.

    Args:
        backend: `"jax"`, `"tensorflow"`, or `"torch"`.
        script: Name of a module. It must not depend on a fresh process.
        arguments: Arguments of `main`, which receives them as strings.
    """
    if backend not in _processes:
        _processes[backend] = _start(backend)
    answer = _send(_processes[backend], [script, *map(str, arguments)])
    if not answer:
        del _processes[backend]  # the next check starts another process
        raise AssertionError(f"The process of {backend} died in {script}.")
    error = json.loads(answer)
    assert error is None, error


_processes = {}


def _send(process, request):
    """Send a request; return the answer's line, empty if the process died."""
    print(json.dumps(request), file=process.stdin, flush=True)
    return process.stdout.readline()


def _start(backend):
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    atexit.register(_stop, process)
    return process


def _stop(process):
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    process.wait()


def _serve():
    """Answer each request with null or a traceback."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # scripts print to stderr
    for line in requests:
        script, *arguments = json.loads(line)
        try:
            importlib.import_module(script).main(*arguments)
            error = None
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
