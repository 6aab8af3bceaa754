"""Work that is done once for the tests of one file."""

import os
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
