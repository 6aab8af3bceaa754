"""Test that the previous save is loaded instead of a torn save."""

import json

import numpy as np
import pytest
from backup_training import (
    two_generations,
)

from keras_moe.distribution.backup import (
    generations,
    state,
)


def truncate(generation, name):
    path = generation / name
    path.write_bytes(path.read_bytes()[:-20])


def flip(generation, name):
    path = generation / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lose(generation, name):
    (generation / name).unlink()


@pytest.mark.parametrize("name", ["arrays.npz", "process-0.npz"])
@pytest.mark.parametrize("damage", [truncate, flip, lose])
def test_a_torn_file_is_detected(tmp_path, damage, name):
    good, torn = two_generations(tmp_path)
    damage(torn, name)
    found, _, why = generations.newest_whole(tmp_path)
    assert found == good
    assert name in why[0]


@pytest.mark.parametrize("damage", [truncate, lose])
def test_a_torn_manifest_is_detected(tmp_path, damage):
    good, torn = two_generations(tmp_path)
    damage(torn, "manifest.json")
    assert generations.newest_whole(tmp_path)[0] == good


@pytest.mark.parametrize(
    "step", ["np.lib.format.write_array", "json.dumps", "os.rename"]
)
def test_a_full_disk_leaves_the_previous_saves(tmp_path, monkeypatch, step):
    """The disk is full at the arrays, at the manifest, or at the last step."""
    good = two_generations(tmp_path)
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        raise OSError(28, "No space left on device")

    def fill(folder):
        state.write_arrays(folder / "arrays.npz", [("a", np.ones(3))])
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(*patched(step), full)
        with pytest.raises(OSError, match="No space left"):
            generations.write(tmp_path, fill, keep=2)
    assert calls
    assert sorted(tmp_path.iterdir()) == good
    found, _, torn = generations.newest_whole(tmp_path)
    assert (found, torn) == (good[1], [])


def patched(step):
    return {
        "np.lib.format.write_array": (np.lib.format, "write_array"),
        "json.dumps": (json, "dumps"),
        "os.rename": (generations.os, "rename"),
    }[step]


def test_files_of_a_killed_save_are_not_a_save(tmp_path):
    good = two_generations(tmp_path)
    half = tmp_path / "generation-00000002.writing"
    half.mkdir()
    (half / "arrays.npz").write_bytes(b"half")
    found, _, torn = generations.newest_whole(tmp_path)
    assert (found, torn) == (good[1], [])
    assert two_generations(tmp_path)[1] == generations.generations(tmp_path)[0]
    assert len(list(tmp_path.iterdir())) == 2


def test_folders_of_the_user_stay(tmp_path):
    """Only folders that a backup wrote are removed, whatever the names."""
    for name in ("writing", "removing", "generation-1", "my.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    for _ in range(2):
        two_generations(tmp_path)
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {"writing", "removing", "generation-1", "my.writing"} | {
        "generation-00000002",
        "generation-00000003",
    }
    assert (tmp_path / "writing" / "notes.txt").read_text() == "mine"
