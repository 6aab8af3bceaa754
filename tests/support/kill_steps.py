"""Kill an export or a save at its steps.

Run `python kill_steps.py FOLDER EVERY KINDS`. Every EVERY-th step is killed in
a fork of this process, and then the export or save is repeated. The kinds are
the keys of `KINDS`. The suffix "-without" simulates a system that cannot
exchange two folders.
"""

import errno
import itertools
import os
import pathlib
import sys

import pytest
from each_step import AtStep, content, kill
from small_exports import TextExport, TextSave

from keras_moe.files import exchanging

KINDS = {
    "export": (TextExport, "artifact"),
    "save": (TextSave, "model.keras"),
}


def cannot_exchange(a, b):
    raise OSError(errno.ENOSYS, "cannot")


def in_fork(function, *args):
    """Call a function in a fork; return the fork's wait status."""
    fork = os.fork()
    if fork:
        return os.waitpid(fork, 0)[1]
    try:
        function(*args)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def killed_at(step, write, target, text):
    with AtStep(step, kill):
        write(target, text)


def main(folder, every, *kinds):
    for kind in kinds:
        place = pathlib.Path(folder, kind)
        place.mkdir()
        check_kind(place, int(every), *kind.split("-"))


def check_kind(folder, every, kind, without=""):
    make, name = KINDS[kind]
    patch = pytest.MonkeyPatch()
    write, target = make(patch), folder / name
    if without:
        patch.setattr(exchanging, "_exchange_at_once", cannot_exchange)
    write(target, "old")
    old = content(folder)
    write(target, "new")
    new = content(folder)
    assert old != new
    missing = 0
    for step in itertools.count(1, every):
        write(target, "old")
        assert content(folder) == old
        status = in_fork(killed_at, step, write, target, "new")
        found = {
            path: text
            for path, text in content(folder).items()
            if path.startswith(name)
        }
        missing += not found
        assert found in ([{}, old, new] if without else [old, new]), step
        write(target, "new")
        assert content(folder) == new, step
        assert [p.name for p in folder.iterdir()] == [name], step
        if not os.WIFSIGNALED(status):
            break
    assert status == 0
    assert step > every
    # Without an exchange, the place is empty between two renames.
    if every == 1:
        assert (missing > 0) == bool(without)


if __name__ == "__main__":
    main(*sys.argv[1:])
