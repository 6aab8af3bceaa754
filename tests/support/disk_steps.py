"""Stops a piece of code at each step that it does on the disk.

Python announces each file that it opens and each entry of a folder that it
makes, renames, or removes ("audit events"). Between two of them a process
that is killed leaves the same files, but for the length of one that is open.
"""

import contextlib
import shutil
import sys

EVENTS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.scandir",
    "os.listdir",
    "shutil.rmtree",
}
_active = []  # functions to be called before a step


def _hear(event, arguments):
    if _active and event in EVENTS:
        step = _active.pop()  # what it does itself is no step
        try:
            step(event, arguments)
        finally:
            _active.append(step)


@contextlib.contextmanager
def before_each_step(step):
    """Within the context, `step(event, arguments)` precedes each step."""
    if not hasattr(sys, "disk_steps_are_heard"):  # a hook cannot be removed
        sys.addaudithook(_hear)
        sys.disk_steps_are_heard = True
    _active.append(step)
    try:
        yield
    finally:
        _active.clear()


class Interrupt:
    """Raises KeyboardInterrupt at step number `at`, counted from 0."""

    def __init__(self, at):
        self.at, self.steps = at, 0

    def __call__(self, event, arguments):
        self.steps += 1
        if self.steps == self.at + 1:
            raise KeyboardInterrupt


class Snapshots:
    """Copies a folder as it is before each step: what a kill would leave."""

    def __init__(self, folder, copies):
        self.folder, self.copies, self.count = folder, copies, 0

    def __call__(self, event, arguments):
        self.copy()

    def copy(self):
        if self.folder.is_dir():
            shutil.copytree(self.folder, self.copies / f"{self.count:03d}")
            self.count += 1
