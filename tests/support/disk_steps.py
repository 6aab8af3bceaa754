"""Stop code before each step that it takes on the disk.

Python raises an audit event for each file that it opens and for each folder
entry that it makes, renames, or removes. Wherever a process is killed between
two events, it leaves the same files, except for the length of an open file.
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
_active = []  # functions to call before a step


def _call_step(event, arguments):
    if _active and event in EVENTS:
        step = _active.pop()  # its own events are not steps
        try:
            step(event, arguments)
        finally:
            _active.append(step)


@contextlib.contextmanager
def before_each_step(step):
    """Call `step(event, arguments)` before each step within the context."""
    if not hasattr(sys, "disk_steps_are_hooked"):  # a hook cannot be removed
        sys.addaudithook(_call_step)
        sys.disk_steps_are_hooked = True
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
    """Copies a folder before each step: a kill would leave the same files."""

    def __init__(self, folder, copies):
        self.folder, self.copies, self.count = folder, copies, 0

    def __call__(self, event, arguments):
        self.copy()

    def copy(self):
        if self.folder.is_dir():
            shutil.copytree(self.folder, self.copies / f"{self.count:03d}")
            self.count += 1
