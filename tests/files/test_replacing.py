"""Test that `export` and `save_model` replace only files that they wrote."""

import errno
import os
import pathlib
import stat
import tempfile

import pytest
from backend import BACKEND
from each_step import content
from kill_steps import in_fork
from small_exports import FORMAT, TextExport, TextSave, foreign_file, names

from keras_moe.export import manifest as manifests
from keras_moe.files import forcing, replacing


def is_root():
    return getattr(os, "geteuid", lambda: None)() == 0


@pytest.mark.one_backend
def test_a_damaged_artifact_can_be_replaced(export, artifact):
    """Only the names of the files must be those of the manifest's list."""
    part = artifact / manifests.FORMATS[FORMAT].parts[0]
    part.write_text("damaged")
    export(artifact, "new")
    assert part.read_text() == "new"


@pytest.mark.one_backend
def test_links_are_followed(export, artifact, tmp_path):
    (tmp_path / "link").symlink_to("artifact")
    (tmp_path / "to_nothing").symlink_to("elsewhere")
    export(tmp_path / "link", "new")
    export(tmp_path / "to_nothing", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(artifact) == content(tmp_path / "elsewhere")
    assert set(content(artifact).values()) >= {"new"}
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ValueError, match="which is not a path"):
        export(tmp_path / "circle", "new")
    assert names(tmp_path) == [
        *("artifact", "circle", "elsewhere", "link", "to_nothing")
    ]


@pytest.mark.one_backend
def test_a_saved_file_behind_a_link_is_replaced(monkeypatch, tmp_path):
    save = TextSave(monkeypatch)
    (tmp_path / "latest.keras").symlink_to("model.keras")
    save(tmp_path / "latest.keras", "saved")
    assert content(tmp_path)["model.keras"] == "saved"
    assert (tmp_path / "latest.keras").is_symlink()
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "circle.keras").symlink_to("circle.keras")
    for name in ("folder.keras", "circle.keras", "a\0.keras"):
        with pytest.raises(ValueError, match="must be the path of a file"):
            save(tmp_path / name, "saved")


@pytest.mark.one_backend
@pytest.mark.skipif(BACKEND == "jax", reason="JAX warns about forks")
@pytest.mark.parametrize("read_only", ["variables", "."])
def test_a_read_only_artifact_leaves_nothing_behind(export, read_only):
    """A fork becomes another user, because root can always write."""

    def replace(target):
        if is_root():
            os.setuid(12345)
        export(target, "old", "tf_saved_model")
        (target / read_only).chmod(0o500)
        if read_only == ".":  # the artifact itself is read-only
            with pytest.raises(OSError, match="must be a place that can be"):
                export(target, "new", "tf_saved_model")
        else:
            export(target, "new", "tf_saved_model")

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        status = in_fork(replace, pathlib.Path(folder, "artifact"))
        assert status == 0
        assert names(pathlib.Path(folder)) == ["artifact"]


@pytest.mark.one_backend
@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_file_that_comes_during_the_export_is_kept(
    export, artifact, monkeypatch, moment
):
    """The file comes before the last check, or between check and swap."""
    exchange, swap_in = replacing.exchange, replacing.swap_in

    def late(*args):
        monkeypatch.setattr(replacing, "exchange", exchange)
        foreign_file(artifact)
        exchange(*args)

    def write(*args):
        foreign_file(artifact)
        TextExport.write(export, *args)

    if moment == "within":
        monkeypatch.setattr(replacing, "exchange", late)
    else:
        monkeypatch.setattr("keras_moe.export.exporting._write", write)
    before = content(artifact)
    with pytest.raises(ValueError, match=r"something else: thesis\.tex"):
        export(artifact, "new")
    assert content(artifact) == {**before, "thesis.tex": "mine"}
    assert names(artifact.parent) == ["artifact"]
    assert swap_in is replacing.swap_in


@pytest.mark.one_backend
def test_an_export_in_progress_is_not_removed(export, artifact, tmp_path):
    """Another export to the same place leaves the hidden folder alone."""
    with replacing.scratch_beside(artifact) as scratch:
        export(artifact, "new")
        assert names(tmp_path) == [scratch.name, "artifact"]
    assert names(tmp_path) == ["artifact"]


def hidden(artifact):
    """Return a hidden folder's path as an earlier process made it."""
    with replacing.scratch_beside(artifact) as scratch:
        return scratch


@pytest.mark.one_backend
@pytest.mark.parametrize("link", ["folder", "lock"])
def test_a_link_under_a_hidden_name_is_not_followed(export, tmp_path, link):
    """In a shared folder, anyone can make such a link to your files."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("lock", "thesis.tex"):
        (mine / name).write_text("mine")
    scratch = hidden(tmp_path / "artifact")
    if link == "folder":
        scratch.symlink_to(mine)
    else:
        scratch.mkdir()
        (scratch / "lock").symlink_to(mine / "thesis.tex")
    export(tmp_path / "artifact", "new")
    assert content(mine) == {"lock": "mine", "thesis.tex": "mine"}


@pytest.mark.one_backend
@pytest.mark.skipif(not is_root(), reason="needs a file of another user")
def test_another_users_hidden_folder_is_left_alone(export, tmp_path):
    scratch = hidden(tmp_path / "artifact")
    (scratch / "new").mkdir(parents=True)
    os.chown(scratch, 12345, -1)
    export(tmp_path / "artifact", "new")
    assert names(scratch) == ["new"]
    os.chown(scratch, 0, -1)
    export(tmp_path / "artifact", "new")
    assert names(tmp_path) == ["artifact"]


@pytest.fixture
def forced(monkeypatch):
    """Return a list of the inodes that are forced to the disk, and renames."""
    events, fsync = [], os.fsync
    renames = [(os, "rename"), (os, "replace"), (replacing, "exchange")]

    def note_fsync(descriptor):
        fsync(descriptor)
        events.append(os.fstat(descriptor).st_ino)

    def noting(own):
        def rename(*args):
            own(*args)
            events.append("renamed")

        return rename

    monkeypatch.setattr(os, "fsync", note_fsync)
    for module, name in renames:
        own = getattr(module, name)
        monkeypatch.setattr(module, name, noting(own))
    return events


@pytest.mark.one_backend
@pytest.mark.parametrize("text", ["first", "second"])
def test_an_export_is_on_the_disk_before_it_has_its_name(
    export, tmp_path, forced, text
):
    """Files are forced first, then their folder, and its new name last."""
    target = tmp_path / "artifact"
    if text == "second":
        export(target, "first")
        forced.clear()
    export(target, text)
    until = forced[: forced.index("renamed")]
    inside = {path.stat().st_ino for path in target.rglob("*")}
    assert until[-1] == target.stat().st_ino
    assert set(until[:-1]) == inside
    # The folder is renamed within the hidden folder, then to its own name.
    after = forced[len(until) :]
    assert after.index(tmp_path.stat().st_ino) >= 2


@pytest.mark.one_backend
def test_a_save_is_on_the_disk_before_it_has_its_name(
    monkeypatch, tmp_path, forced
):
    target = tmp_path / "model.keras"
    TextSave(monkeypatch)(target, "saved")
    file, folder = target.stat().st_ino, tmp_path.stat().st_ino
    assert forced == [file, "renamed", folder]


@pytest.mark.one_backend
def test_a_file_system_that_cannot_force_folders(monkeypatch, tmp_path):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "cannot")
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fsync)
    forcing.force(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(OSError, match="broken"):
        forcing.force(tmp_path)


@pytest.mark.one_backend
def test_permissions_are_kept(export, artifact, monkeypatch, tmp_path):
    """Other users cannot read what they could not read before."""
    file = tmp_path / "model.keras"
    save = TextSave(monkeypatch)
    save(file, "old")
    for path, mode in ((file, 0o600), (artifact, 0o700)):
        path.chmod(mode)
    save(file, "new")
    export(artifact, "new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(artifact.stat().st_mode) == 0o700


@pytest.mark.one_backend
def test_parents_are_made_and_removed_if_the_export_fails(export, tmp_path):
    def fail(*args):
        raise RuntimeError("cannot convert")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_moe.export.exporting._write", fail)
        with pytest.raises(RuntimeError, match="cannot convert"):
            export(tmp_path / "a" / "b" / "c", "new")
    assert names(tmp_path) == []
    export(tmp_path / "a" / "b" / "c", "new")
    assert names(tmp_path / "a" / "b") == ["c"]
    export(tmp_path / ("n" * 255), "new")  # the longest name
