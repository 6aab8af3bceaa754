"""Test the places that `export` and `save_model` refuse and do not change."""

import os
import pathlib

import pytest
from each_step import content
from small_exports import FORMAT, TextSave, foreign_file, names

from keras_moe.export import manifest as manifests
from keras_moe.export import placing


def foreign_hidden_file(folder):
    (folder / ".notes").write_text("mine")


def foreign_file_below(folder):
    (folder / "variables").mkdir(exist_ok=True)
    (folder / "variables" / "mine").write_text("mine")


def foreign_folder(folder):
    (folder / "results").mkdir()


def foreign_link(folder):
    (folder / "link").symlink_to(folder.parent)


def link_instead_of_a_file(folder):
    part = folder / manifests.FORMATS[FORMAT].parts[0]
    part.rename(folder.parent / "mine")
    part.symlink_to(folder.parent / "mine")


def damaged_manifest(folder):
    path = folder / manifests.NAME
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 3'))


def manifest_of_another_program(folder):
    (folder / manifests.NAME).write_text('{"moe": "a cow"}')


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "add",
    [
        foreign_file,
        foreign_hidden_file,
        foreign_file_below,
        foreign_folder,
        foreign_link,
        link_instead_of_a_file,
        damaged_manifest,
        manifest_of_another_program,
    ],
    ids=lambda add: add.__name__,
)
def test_a_folder_that_holds_anything_else_is_refused(export, artifact, add):
    add(artifact)
    before = content(artifact.parent), names(artifact)
    with pytest.raises(ValueError, match="`path` must be a new folder"):
        export(artifact, "new")
    assert (content(artifact.parent), names(artifact)) == before


@pytest.mark.one_backend
def test_a_folder_without_a_manifest_and_a_file_are_refused(export, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for path, what in ((tmp_path, "mine.txt"), (tmp_path / "mine.txt", "file")):
        with pytest.raises(ValueError, match=f"Received: .*, .*{what}"):
            export(path, "new")
    assert content(tmp_path) == {"mine.txt": "mine"}


@pytest.mark.one_backend
@pytest.mark.parametrize("where", [".", "artifact", "artifact/.."])
def test_the_working_directory_is_refused(export, tmp_path, monkeypatch, where):
    """The folder may be empty, an artifact, or the parent of an artifact."""
    here = tmp_path / "empty"
    here.mkdir()
    if where != ".":
        export(here / "artifact", "old")
        here = here / "artifact" if where == "artifact" else here
    monkeypatch.chdir(here)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="the working directory"):
        export("." if where == "artifact" else where, "new")
    assert content(tmp_path) == before


@pytest.mark.one_backend
def test_the_working_directory_under_another_name(
    export, artifact, monkeypatch, tmp_path
):
    """On some systems, `a` and `A` are the same folder."""
    (tmp_path / "other").symlink_to(artifact)
    monkeypatch.setattr(placing.Path, "cwd", lambda: tmp_path / "other")
    with pytest.raises(ValueError, match="the working directory"):
        export(artifact, "new")


@pytest.mark.one_backend
def test_a_mount_point_is_refused_at_once(export, artifact, monkeypatch):
    """An empty volume of a container cannot be renamed."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == artifact)
    with pytest.raises(ValueError, match="a mount point: name a new folder"):
        export(artifact, "new")
    export(artifact / "inside", "new")


@pytest.mark.one_backend
@pytest.mark.parametrize("address", ["gs://bucket/a", "file:///tmp/a"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_an_address_is_not_a_path(export, monkeypatch, tmp_path, address, kind):
    monkeypatch.chdir(tmp_path)
    save = TextSave(monkeypatch)
    for write, place in ((export, address), (save, f"{address}.keras")):
        with pytest.raises(ValueError, match="`path` must be a path of a file"):
            write(kind(place), "new")
    assert names(tmp_path) == []
    for name in ("a:b", "c:"):  # `c:` is a drive only on Windows
        export(tmp_path / name, "new")


@pytest.mark.one_backend
def test_a_home_that_is_not_expanded(export, monkeypatch, tmp_path):
    """Deleting a folder named `~` may delete the home directory instead."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"Pass os\.path\.expanduser"):
        export("~/artifact", "new")
    assert names(tmp_path) == []
    for name in ("a~", "no/~"):
        export(name, "new")
