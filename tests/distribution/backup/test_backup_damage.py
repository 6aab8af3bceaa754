"""Damage backups, and check that an older save is loaded."""

import hashlib
import json
import shutil
import warnings

import hand_saves
import numpy as np
import pytest
from backend import BACKEND
from backup_training import StopAfter, Stopped, fit

from keras_moe.distribution import BackupAndResume, load_backup
from keras_moe.distribution.backup import generations

pytestmark = pytest.mark.one_backend

GOOD, NEWEST = "generation-00000001", "generation-00000002"
OTHER_FILES = ("arrays.npz", "process-0.npz")


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    """Return two of three epochs' saves; the weights identify the epoch."""
    folder = tmp_path_factory.mktemp("backup")
    hand_saves.make_backup(folder, 3)
    assert hand_saves.whole_names(folder) == [NEWEST, GOOD]
    return folder


@pytest.fixture
def damaged(backup, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(backup, tmp_path / "damaged")


def choose(folder):
    """Return the chosen save's name, its manifest, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        name, manifest = hand_saves.choose(folder)
    return name, manifest, [str(warning.message) for warning in caught]


def assert_passed_over(folder):
    """Assert that the newest save is skipped with the documented warning."""
    name, manifest, texts = choose(folder)
    assert name == GOOD
    assert manifest["epoch"] == 2
    (text,) = texts
    assert text.startswith("Damaged saves are skipped: ")
    assert text.endswith(f"{GOOD} is loaded.")


def seal(manifest):
    """Give a manifest its checksum, by the format's definition."""
    content = {k: v for k, v in manifest.items() if k != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return {**content, "checksum": checksum}


def first_schema(manifest):
    """Return the manifest as the version before checksums wrote it."""
    added = ("schema", "checksum", "layers", "steps")
    return {k: v for k, v in manifest.items() if k not in added}


def make_old(folder):
    for generation in generations.generations(folder):
        path = generation / "manifest.json"
        old = first_schema(json.loads(path.read_text()))
        path.write_text(json.dumps(old, indent=1))


# --- one-bit flips -----------------------------------------------------------


def flip_each(folder, name, bits):
    """Flip one bit of a file after another, and check which save is loaded.

    A flip between two values of the JSON text may leave the content unchanged.
    """
    path = folder / NEWEST / name
    manifest = json.loads((folder / NEWEST / "manifest.json").read_text())
    whole = path.read_bytes()
    unchanged = 0
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        found, content, texts = choose(folder)
        if found == NEWEST and name == "manifest.json":
            assert content == manifest, bit
            assert texts == [], bit
            unchanged += 1
        else:
            assert found == GOOD, bit
            assert len(texts) == 1, bit
            assert texts[0].startswith("Damaged saves are skipped"), bit
    path.write_bytes(whole)
    assert unchanged < len(bits) / 10


def number_of_bits(folder, name):
    return 8 * (folder / NEWEST / name).stat().st_size


def test_some_one_bit_flips(damaged, rng):
    """The slow tests below flip every bit, or many more."""
    for name, count in (("manifest.json", 150), ("arrays.npz", 100)):
        bits = rng.integers(number_of_bits(damaged, name), size=count)
        flip_each(damaged, name, bits.tolist())


@pytest.mark.slow
def test_every_one_bit_flip_of_a_manifest(damaged):
    bits = range(number_of_bits(damaged, "manifest.json"))
    flip_each(damaged, "manifest.json", bits)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_thousand_one_bit_flips_of_each_other_file(damaged, rng, name):
    bits = rng.integers(number_of_bits(damaged, name), size=1000)
    flip_each(damaged, name, bits.tolist())


# --- malformed files ---------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "3",
        '"text"',
        "{" * 100_000,
        "[" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "1" * 10_000,
        "\xff",
        '{"schema": 2, "files": {}}',
        '{"files": {"../../secret": [1, 1]}}',
        '{"files": {"arrays.npz": 1}}',
        '{"files": {"arrays.npz": [1]}}',
        '{"files": [["arrays.npz", 1, 1]]}',
        '{"files": null, "checksum": null}',
    ],
    ids=lambda text: text[:20],
)
def test_texts_that_are_not_manifests(damaged, text):
    path = damaged / NEWEST / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    assert_passed_over(damaged)


@pytest.mark.parametrize("change", ["epoch", "batch", "finished", "processes"])
def test_a_manifest_with_another_number(damaged, change):
    path = damaged / NEWEST / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, change: 1_000}))
    assert_passed_over(damaged)


@pytest.mark.parametrize("key", ["checksum", "schema"])
def test_a_manifest_without_its_checksum(damaged, key):
    """Removing the keys does not give a valid manifest of an old version."""
    path = damaged / NEWEST / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    assert_passed_over(damaged)
    manifest.pop("schema", None), manifest.pop("checksum", None)
    path.write_text(json.dumps(manifest))
    assert_passed_over(damaged)


VALUES = [None, True, -1, 0, 1, 7, 1.5, 10**30, "x", [], {}, [[]], [{}]]
VALUES += [["x", [1]], [["x", [-1]]], [["x", 1]], {"x": [1, 1]}, float("nan")]


@pytest.mark.parametrize("old", [False, True])
def test_values_of_another_kind(damaged, old):
    """Replace each entry, with a matching checksum or without a checksum.

    A value of the right kind may be loaded. Only the documented exceptions are
    raised.
    """
    path = damaged / NEWEST / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest = first_schema(manifest) if old else manifest
    chosen = {}
    for key in manifest.keys() - {"checksum"}:
        without = {k: v for k, v in manifest.items() if k != key}
        changed = [{**manifest, key: value} for value in VALUES]
        for text in (without, *changed):
            text = text if old else seal(text)
            path.write_text(json.dumps(text))
            name, found, texts = choose(damaged)
            assert name in (GOOD, NEWEST)
            if name == NEWEST:
                chosen.setdefault(key, []).append(found[key])
                assert (len(texts) == 1) == old
    right = {
        "model": ["x"],
        "optimizer": [None, "x"],
        "backend": ["x"],
        "batch": [0, 1, 7, 10**30],
        "finished": [None, 0, 1, 7, 10**30],
        "weights": [0, 1],
        "processes": [1],
        "steps": [None, 1, 7, 10**30],
        "layers": [[]],
    }
    assert chosen == {k: v for k, v in right.items() if k in manifest}


def write_save(folder, name, data):
    """Replace a file, and update the checksums."""
    generation = folder / NEWEST
    (generation / name).write_bytes(data)
    path = generation / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = generations._seal(generation / name)
    path.write_text(json.dumps(seal(manifest)))


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_that_are_not_arrays(damaged, name, rng):
    """The checksums match."""
    whole = (damaged / NEWEST / name).read_bytes()
    for data in (b"", b"text", whole[: len(whole) // 2], whole[50:]):
        write_save(damaged, name, data)
        assert_passed_over(damaged)
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        data = bytearray(whole)
        data[at : at + 8] = rng.bytes(8)
        write_save(damaged, name, bytes(data))
        assert choose(damaged)[0] in (GOOD, NEWEST)


def test_arrays_of_other_shapes(damaged):
    path = damaged / NEWEST / "arrays.npz"
    with np.load(path) as file:
        arrays = dict(file)
    first = next(iter(arrays))
    arrays[first] = np.zeros(7, arrays[first].dtype)
    np.savez(path, **arrays)
    write_save(damaged, "arrays.npz", path.read_bytes())
    assert_passed_over(damaged)


def test_training_resumes_from_the_older_save(damaged):
    (damaged / NEWEST / "manifest.json").write_text("{}")
    model = hand_saves.make_model()
    with pytest.warns(UserWarning, match="Damaged saves are skipped"):
        callback = hand_saves.begin(damaged, model)
    assert hand_saves.epoch_of(model) == 1
    assert model._initial_epoch == 2
    assert hand_saves.whole_names(damaged) == [GOOD]
    hand_saves.train_epoch(callback, 2)
    assert hand_saves.whole_names(damaged) == [NEWEST, GOOD]


def test_only_malformed_saves_are_an_error(damaged):
    for name in (GOOD, NEWEST):
        (damaged / name / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="`directory` must contain an"):
        hand_saves.begin(damaged)
    assert len(list(damaged.iterdir())) == 2


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_other_things_in_the_place_of_a_manifest(damaged, kind):
    path = damaged / NEWEST / "manifest.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("nowhere")
    assert_passed_over(damaged)


def test_a_save_that_cannot_be_read_is_not_removed(damaged, monkeypatch):
    """The save may be readable later, when the disk error is gone."""

    def deny(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(generations, "_checksum", deny)
    with pytest.raises(PermissionError):
        hand_saves.begin(damaged)
    monkeypatch.undo()
    assert hand_saves.whole_names(damaged) == [NEWEST, GOOD]


# --- backups of the version before checksums ---------------------------------


def test_an_old_backup_is_loaded_with_one_warning(damaged):
    make_old(damaged)
    model = hand_saves.make_model()
    with pytest.warns(UserWarning) as caught:
        callback = hand_saves.begin(damaged, model)
    (warning,) = caught
    assert "no checksum of the manifest" in str(warning.message)
    assert hand_saves.epoch_of(model) == 2
    hand_saves.train_epoch(callback, 3)
    hand_saves.begin(damaged)  # without a warning
    other = hand_saves.make_model()
    load_backup(other, damaged)
    assert hand_saves.epoch_of(other) == 3


def test_an_old_manifest_that_contradicts_its_history(damaged):
    """The history, which has a checksum, also determines the epoch."""
    make_old(damaged)
    path = damaged / NEWEST / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "epoch": 1}))
    name, _, texts = choose(damaged)
    assert name == GOOD
    assert len(texts) == 2  # the older manifest is of that version, too


@pytest.mark.every_backend
def test_an_old_backup_within_an_epoch(tmp_path):
    """Metric states lack an axis in old backups of JAX and PyTorch."""
    expected = fit()[1]
    with pytest.raises(Stopped):
        fit(BackupAndResume(tmp_path, 2), StopAfter(1, 2))
    make_old(tmp_path)
    for generation in generations.generations(tmp_path):
        drop_axis(generation)
    with pytest.warns(UserWarning, match="no checksum of the manifest"):
        assert fit(BackupAndResume(tmp_path, 2))[1] == expected


def drop_axis(generation):
    """Write the metric states as the version before checksums wrote them."""
    path = generation / "process-0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    if BACKEND != "tensorflow":
        for name in arrays:
            if name.startswith("metric."):
                arrays[name] = arrays[name][0]
    np.savez(path, **arrays)
    manifest = generation / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["process-0.npz"] = generations._seal(path)
    manifest.write_text(json.dumps(content))
