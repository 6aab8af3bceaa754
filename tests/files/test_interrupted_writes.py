"""Interrupt or kill exports and saves at their steps."""

import itertools
import subprocess
import sys

import pytest
from each_step import AtStep, content, interrupt
from kill_steps import KINDS, cannot_exchange
from paths import SUPPORT
from small_exports import TextSave, names

from keras_moe.export import manifest as manifests
from keras_moe.files import exchanging

# After an interrupt between `open` and `with`, the garbage collector closes the
# file.
collected = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


def check_interrupts(write, target, every=1):
    """Interrupt a write at each step; assert that old or new files are left."""
    folder, found = target.parent, []
    write(target, "new")
    new = content(folder)
    write(target, "old")
    old = content(folder)
    for step in itertools.count(1, every):
        with AtStep(step, interrupt) as at:
            try:
                write(target, "new")
            except KeyboardInterrupt:
                assert at.done
        assert content(folder) in (old, new), step
        found.append(content(folder) == new)
        assert names(folder) == [target.name], step
        if not at.done:
            break
        write(target, "old")
    # The files are old until one step, and new from then on.
    assert found == sorted(found)
    assert found[0] != found[-1]


@pytest.mark.one_backend
@collected
def test_an_export_is_interrupted_at_each_step(export, tmp_path):
    check_interrupts(export, tmp_path / "artifact", every=5)


@pytest.mark.one_backend
@collected
def test_a_save_is_interrupted_at_each_step(monkeypatch, tmp_path):
    check_interrupts(TextSave(monkeypatch), tmp_path / "model.keras")


@pytest.mark.one_backend
@collected
def test_interrupts_if_folders_cannot_be_exchanged(
    export, tmp_path, monkeypatch
):
    monkeypatch.setattr(exchanging, "_exchange_at_once", cannot_exchange)
    check_interrupts(export, tmp_path / "artifact", every=5)


def run(script, *arguments):
    """Run a script that has its own assertions."""
    done = subprocess.run(
        [sys.executable, SUPPORT / script, *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_kill_9_at_some_steps(tmp_path):
    run("kill_steps.py", tmp_path, 61, *KINDS)


@pytest.mark.slow
def test_kill_9_at_each_step(tmp_path):
    run("kill_steps.py", tmp_path, 1, *KINDS, "export-without")


@pytest.mark.one_backend
def test_two_processes_export_at_once(tmp_path):
    run("exports_at_once.py", tmp_path / "artifact")
    assert names(tmp_path) == ["artifact"]
    assert manifests.read_checked(tmp_path / "artifact")
