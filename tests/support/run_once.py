"""Work that is done once for the tests of one file."""

import os
import pathlib
import subprocess
import sys
import time

LONGEST = 600  # seconds


def run_once(tmp_path_factory, name, work):
    """Returns a folder in which `work(folder)` was done.

    A fixture of a module is made in each process that runs a test of it; of
    these processes the first does the work, and the others wait.
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
    """Return the folder in which a script of this folder left its results.

    The script is called as `python name.py FOLDER ARGUMENT ...`.
    """
    script = pathlib.Path(__file__).with_name(f"{name}.py")

    def start(folder):
        command = [sys.executable, script, folder, *arguments]
        subprocess.run(command, check=True, timeout=LONGEST)

    return run_once(tmp_path_factory, "-".join([name, *arguments]), start)
