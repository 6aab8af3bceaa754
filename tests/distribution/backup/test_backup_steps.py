"""Interrupt or kill a save at each step, and check that nothing is lost.

`test_kill.py` trains in processes that are killed.
"""

import json
import re
import shutil
import subprocess
import sys

import each_step
import hand_saves
import pytest
from backup_training import fit
from disk_steps import Interrupt, Snapshots, before_each_step
from each_step import AtStep, interrupt
from paths import SUPPORT

from keras_moe.distribution.backup import BackupAndResume, generations

OURS = re.compile(r"generation-\d{8}(\.writing|\.removing)?")


def call_within(monkeypatch, name, step):
    """Call `step` before each step of a function of `generations`."""
    own = getattr(generations, name)

    def with_steps(*args):
        with before_each_step(step):
            return own(*args)

    monkeypatch.setattr(generations, name, with_steps)


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_an_interrupt_at_each_step_of_a_save(tmp_path, epochs):
    """The save is the first, the second, or one that removes an older save."""
    whole = tmp_path / "whole"
    hand_saves.make_backup(whole, epochs)
    for at in range(1000):
        folder = tmp_path / str(at)
        shutil.copytree(whole, folder) if epochs else None
        callback = hand_saves.begin(folder)
        step = Interrupt(at)
        with pytest.MonkeyPatch.context() as patch:
            call_within(patch, "write", step)
            try:
                hand_saves.train_epoch(callback, epochs)
            except KeyboardInterrupt:
                pass
        saves = hand_saves.whole_names(folder) if folder.is_dir() else []
        assert len(saves) >= min(epochs, 2), at
        model = hand_saves.make_model()
        hand_saves.begin(folder, model)
        assert hand_saves.epoch_of(model) in (epochs - 1, epochs), at
        if step.steps <= at:
            break
    assert 10 < at < 100
    assert hand_saves.epoch_of(model) == epochs


# An interrupt after opening a file and before entering it leaves it open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.slow
@pytest.mark.one_backend
def test_an_interrupt_at_each_line_of_a_save(tmp_path, monkeypatch):
    """The lines include those between two disk steps and those of cleanup."""
    # Lines of `state.py` are excluded, because Python does not close an archive
    # if opening it is interrupted.
    files = (generations.__file__,)
    monkeypatch.setitem(each_step.FILES_OF, "interrupt", files)
    whole = tmp_path / "whole"
    hand_saves.make_backup(whole, 3)
    model, other = hand_saves.make_model(), hand_saves.make_model()
    for line in range(1, 10_000):
        folder = shutil.copytree(whole, tmp_path / str(line))
        callback = hand_saves.begin(folder, model)
        try:
            with AtStep(line, interrupt) as at:
                hand_saves.train_epoch(callback, 3)
        except KeyboardInterrupt:
            pass
        assert len(hand_saves.whole_names(folder)) >= 2, line
        hand_saves.begin(folder, other)
        assert hand_saves.epoch_of(other) in (2, 3), line
        shutil.rmtree(folder)
        if not at.done:
            break
    assert line > 50
    assert hand_saves.epoch_of(other) == 3


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_kill_at_each_step_of_a_save(tmp_path, epochs):
    """A kill would leave the files that are on the disk before each step."""
    folder, copies = tmp_path / "backup", tmp_path / "copies"
    callback = hand_saves.make_backup(folder, epochs)
    step = Snapshots(folder, copies)
    with pytest.MonkeyPatch.context() as patch:
        call_within(patch, "write", step)
        hand_saves.train_epoch(callback, epochs)
    step.copy()
    loaded = []
    for killed in sorted(copies.iterdir()):
        assert all(OURS.fullmatch(path.name) for path in killed.iterdir())
        model = hand_saves.make_model()
        callback = hand_saves.begin(killed, model)
        loaded.append(hand_saves.epoch_of(model))
        assert len(hand_saves.whole_names(killed)) <= 3
        hand_saves.train_epoch(callback, loaded[-1] + 1)
        assert len(hand_saves.whole_names(killed)) == min(loaded[-1] + 2, 2)
    assert loaded == sorted(loaded)
    assert set(loaded) == {epochs - 1, epochs}
    assert len(loaded) > 10


@pytest.mark.one_backend
def test_a_kill_at_each_step_of_deleting_the_saves(tmp_path):
    """`delete_checkpoint` removes the saves in the end, the newest one last."""
    folder, copies = tmp_path / "backup", tmp_path / "copies"
    callback = hand_saves.make_backup(folder, 3)
    callback.delete_checkpoint = True
    step = Snapshots(folder, copies)
    with pytest.MonkeyPatch.context() as patch:
        call_within(patch, "remove", step)
        callback.on_train_end()
    step.copy()
    loaded = []
    for killed in sorted(copies.iterdir()):
        model = hand_saves.make_model()
        hand_saves.begin(killed, model)
        loaded.append(hand_saves.epoch_of(model))
    assert set(loaded) == {2, -1}
    assert loaded == sorted(loaded, reverse=True)
    assert list(folder.iterdir()) == []


@pytest.mark.one_backend
def test_processes_that_are_killed(tmp_path):
    """SIGKILL ends a process at each step of a save that follows two saves."""
    script = SUPPORT / "kill_backup_steps.py"
    command = [sys.executable, script, tmp_path, generations.__file__]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert [killed for killed, *_ in found] == [True] * (len(found) - 1) + [
        False
    ]
    assert len(found) > 20
    for _, number, torn, names in found:
        assert number in (2, 3)
        assert torn == []
        last = 4 if number == 3 else 3
        assert names == [f"generation-{n:08d}" for n in (last - 1, last)]


def test_loading_changes_no_file(tmp_path):
    """A backup may be read while the training run continues."""
    from keras_moe.distribution import load_backup

    hand_saves.make_backup(tmp_path, 2)
    newest = generations.generations(tmp_path)[0]
    (newest / "arrays.npz").unlink()
    (tmp_path / "generation-00000002.writing").mkdir()
    before = sorted(tmp_path.rglob("*"))
    model = hand_saves.make_model()
    with pytest.warns(UserWarning, match="Damaged saves are skipped"):
        load_backup(model, tmp_path)
    assert hand_saves.epoch_of(model) == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.one_backend
def test_a_folder_that_cannot_be_made_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    for directory in (tmp_path / "file", tmp_path / "file" / "backup"):
        with pytest.raises(OSError, match="file"):
            hand_saves.begin(directory)


@pytest.mark.one_backend
def test_the_working_directory_may_change(tmp_path, monkeypatch):
    """A relative path is resolved when the callback is made."""
    monkeypatch.chdir(tmp_path)
    callback = hand_saves.begin("backup")
    for epoch in range(2):
        (tmp_path / f"run-{epoch}").mkdir()
        monkeypatch.chdir(tmp_path / f"run-{epoch}")
        hand_saves.train_epoch(callback, epoch)
    assert len(hand_saves.whole_names(tmp_path / "backup")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("backup", "run-0", "run-1")
    ]


def test_another_models_backup_is_left_unchanged(tmp_path):
    """Torn saves stay, too, because only their own training removes them."""
    hand_saves.make_backup(tmp_path, 2)
    newest = generations.generations(tmp_path)[0]
    (newest / "arrays.npz").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="Damaged saves are skipped"):
        with pytest.raises(ValueError, match="`directory` must contain"):
            fit(BackupAndResume(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
