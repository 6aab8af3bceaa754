"""Do work once for all tests of a file."""

import os
import pathlib
import subprocess
import sys
import time

LONGEST = 600  # seconds


def run_once(tmp_path_factory, name, work):
    """Return a folder in which `work(folder)` was done.

    Each process that runs a test of a module makes the module's fixtures. The
    first of these processes does the work, and the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    failed = base / f"{name}.failed"
    try:
        folder.mkdir()
    except FileExistsError:
        end = time.monotonic() + LONGEST
        while not done.exists():
            assert not failed.exists(), f"{name} failed in another process"
            assert time.monotonic() < end, f"{name} is not done"
            time.sleep(0.1)
        return folder
    try:
        work(folder)
    except BaseException:
        failed.touch()
        raise
    done.touch()
    return folder


def run_script_once(tmp_path_factory, name, *arguments):
    """Run a script of this folder once; return the folder of its results.

    The command is `python name.py FOLDER ARGUMENT ...`.
    """
    script = pathlib.Path(__file__).with_name(f"{name}.py")

    def start(folder):
        command = [sys.executable, script, folder, *arguments]
        subprocess.run(command, check=True, timeout=LONGEST)

    return run_once(tmp_path_factory, "-".join([name, *arguments]), start)
