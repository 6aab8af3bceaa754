"""Test that a damaged artifact gives the right numbers or a documented error.

One artifact per format is written, and copies of it are damaged at random: bits
are flipped, blocks are zeroed or copied, and files are cut, lengthened,
exchanged, or removed.
"""

import json
import random
import shutil

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from run_once import run_once

import keras_moe
from keras_moe.export import FORMATS, export, load, verify
from keras_moe.export import manifest as manifests
from keras_moe_cli.bootstrap import run_command

# The formats that this backend writes itself; the others are slow.
OWN = {
    "jax": [],
    "tensorflow": ["tf_saved_model", "litert", "onnx", "openvino"],
    "torch": ["torch"],
}[BACKEND]
FEW, MANY = 60, 300
X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def model_of():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((None, 8), name="tokens")
    return keras.Model(inputs, keras_moe.MoEBlock(4, 6)(inputs))


@pytest.fixture
def written(tmp_path_factory):
    """Return the folder of a format's artifact, which is written once."""

    def folder_of(format):
        def write(folder):
            export(model_of(), folder / "artifact", format, verify=False)

        name = f"damaged_{BACKEND}_{format}"
        return run_once(tmp_path_factory, name, write) / "artifact"

    return folder_of


def flip(data, rng):
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)


def flip_many(data, rng):
    for _ in range(rng.randrange(2, 50)):
        flip(data, rng)


def cut(data, rng):
    del data[rng.randrange(len(data)) :]


def lengthen(data, rng):
    data += rng.randbytes(rng.randrange(1, 100))


def clear(data, rng):
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randrange(1, 4096))
    data[start:end] = bytes(end - start)


def shift(data, rng):
    """Overwrite a block with another block of the same file."""
    size = rng.randrange(1, 1 + len(data) // 2)
    a, b = (rng.randrange(len(data) - size + 1) for _ in range(2))
    data[a : a + size] = data[b : b + size]


IN_A_FILE = [flip, flip_many, cut, lengthen, clear, shift]


def damage(folder, rng):
    """Damage, exchange, or remove files at random; return a description."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    before = [p.read_bytes() for p in files]
    while before == [p.is_file() and p.read_bytes() for p in files]:
        kind = rng.choice([*IN_A_FILE, "exchange", "remove"])
        path, other = rng.choice(files), rng.choice(files)
        content = bytearray(path.read_bytes())
        if kind == "remove":
            path.unlink()
        elif kind == "exchange":
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            kind(content, rng)
            path.write_bytes(content)
    return f"{getattr(kind, '__name__', kind)} of {path.name}"


def check_damaged(source, folder, seeds):
    """Load damaged copies; a copy that loads must give the same numbers."""
    right = None
    for seed in seeds:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        what = damage(folder, random.Random(seed))
        try:
            [found] = load(folder)(X)
        except (ValueError, FileNotFoundError):
            continue
        # Damage may be harmless, such as another space in `moe.json`.
        if right is None:
            [right] = load(source)(X)
        np.testing.assert_array_equal(found, right, err_msg=what)


QUICK = [name for name in OWN if name != "openvino"]  # 25 s to write


@pytest.mark.parametrize("format", QUICK)
def test_damage_gives_no_wrong_number(format, written, tmp_path):
    check_damaged(written(format), tmp_path / "copy", range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_much_damage_gives_no_wrong_number(format, written, tmp_path):
    seeds = range(1000, 1000 + MANY)
    check_damaged(written(format), tmp_path / "copy", seeds)


own = pytest.mark.skipif(not OWN, reason="JAX writes no format itself")


@pytest.fixture
def copy(written, tmp_path):
    """Return a copy of an artifact that this backend writes."""
    return shutil.copytree(written(OWN[0]), tmp_path / "copy")


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "model.keras"
    model_of().save(path)
    return path


@own
@pytest.mark.one_backend
def test_every_entry_point_detects_damage(copy, model_file, capsys):
    path = max(copy.rglob("*.*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256 of .* differs"):
        load(copy)
    with pytest.raises(ValueError, match="SHA-256 of .* differs"):
        verify(model_of(), copy)
    for command in (
        ["inspect", copy],
        ["bench", copy],
        ["compare", model_file, copy],
        ["compare", copy, model_file],
    ):
        assert run_command(list(map(str, command))) == 1
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "SHA-256" in err and "again" in err


@pytest.fixture
def old(copy):
    """Return an artifact as it was written before checksums were added."""
    path = copy / "moe.json"
    content = json.loads(path.read_text())
    del content["files"], content["checksum"]
    path.write_text(json.dumps({**content, "schema": 1}))
    return copy


def places_of(warnings):
    """Return the files that the package's warnings refer to."""
    text = "written before keras_moe stored checksums"
    return [w.filename for w in warnings if text in str(w.message)]


@own
@pytest.mark.one_backend
def test_an_old_artifact_gives_one_warning(old, model_file, capsys):
    with pytest.warns(UserWarning) as seen:
        [y] = load(old)(X)
    assert places_of(seen) == [__file__]
    np.testing.assert_allclose(y, to_numpy(model_of()(X)), atol=1e-5)
    with pytest.warns(UserWarning) as seen:
        verify(model_of(), old)
    assert places_of(seen) == [__file__]
    for command in (
        ["inspect", old],
        ["bench", old, "--tokens", 1],
        ["compare", model_file, old],
    ):
        assert run_command(list(map(str, command))) == 0
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("keras-moe: warning: The artifact in ")


@own
@pytest.mark.one_backend
@pytest.mark.parametrize("key", ["files", "checksum"])
def test_an_old_schema_has_no_checksums(copy, key):
    """A new manifest does not become an old one by its number alone."""
    path = copy / "moe.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps({**content, "schema": 1}))
    with pytest.raises(ValueError, match="must be an object of the keys"):
        load(copy)


@own
@pytest.mark.one_backend
def test_files_that_are_not_listed_are_ignored(copy):
    (copy / "notes.txt").write_text("mine")
    assert load(copy).manifest == manifests.read(copy)


@own
@pytest.mark.parametrize("name", ["a[1]", "[!a]/b", "a\\b", "a*b?"])
def test_names_that_are_patterns(copy, name):
    """TensorFlow finds the variables of a SavedModel by a pattern."""
    folder = copy.parent / name
    folder.parent.mkdir(exist_ok=True)
    copy.rename(folder)
    [y] = load(folder)(X)
    np.testing.assert_allclose(y, to_numpy(model_of()(X)), atol=1e-5)
