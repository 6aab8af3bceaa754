"""Export to one folder from two processes while a third process reads it.

Run `python exports_at_once.py FOLDER`. A reader that holds the folder open must
never read files of two exports.
"""

import os
import pathlib
import sys
import time

import pytest
from small_exports import FORMAT, TextExport

from keras_moe.export.formats import FORMATS

TEXTS = ("a", "bb")
EXPORTS = 10


def fork_exports(export, folder, text):
    """Start a process that exports one text repeatedly; return its id."""
    fork = os.fork()
    if fork:
        return fork
    code = 1
    try:
        for _ in range(EXPORTS):
            export(folder, text)
        code = 0
    finally:
        os._exit(code)


def read_at_once(folder):
    """Return the texts of an artifact's files, empty if it is replaced."""
    try:
        place = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return set()
    try:
        texts = set()
        for part in FORMATS[FORMAT].parts:
            with os.fdopen(os.open(part, os.O_RDONLY, dir_fd=place)) as file:
                texts.add(file.read())
        return texts
    except FileNotFoundError:
        return set()
    finally:
        os.close(place)


def main(folder):
    folder = pathlib.Path(folder)
    export = TextExport(pytest.MonkeyPatch())
    forks = {fork_exports(export, folder, text) for text in TEXTS}
    seen = set()
    while forks:
        texts = read_at_once(folder)
        assert len(texts) <= 1, texts
        seen |= texts
        time.sleep(1e-3)
        fork, status = os.waitpid(-1, os.WNOHANG)
        assert status == 0
        forks -= {fork}
    assert seen == set(TEXTS)


if __name__ == "__main__":
    main(*sys.argv[1:])
