"""Interrupt a function, or kill its process, at each of its steps in turn."""

import os
import pathlib
import shutil
import signal
import sys

import keras_moe

ROOT = pathlib.Path(keras_moe.__file__).parent
# The files that write, swap, and remove.
FILES = ("files", "export/exporting.py", "export/placing.py", "distribution")
FILES = tuple(str(ROOT / name) for name in FILES)
# An interrupt in `shutil` may close a file twice; a kill may come anywhere.
FILES_OF = {"interrupt": FILES, "kill": (*FILES, shutil.__file__)}


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class AtStep:
    """Calls `act()` in the context, before line number `step` of some files.

    A line counts each time that it runs, from 1. `done` is true if `act` was
    called.
    """

    def __init__(self, step, act):
        self.step, self.act = step, act
        self.count, self.done = 0, False
        self.files = FILES_OF[act.__name__]

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(self.files):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.step:
                self.done = True
                self.act()
        return self.trace


def content(folder):
    """Return the text of each file in a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
