"""Test the artifact that `keras-moe export` writes, and its errors."""

import importlib.util

import keras
import pytest
from command_line import CommandLine, save_tiny

from keras_moe_cli.bootstrap import run_command

BACKEND = keras.backend.backend()
# The format that this backend writes itself, in seconds.
FORMAT = {"torch": "torch", "tensorflow": "tf_saved_model"}.get(BACKEND)
writes = pytest.mark.skipif(FORMAT is None, reason=f"{BACKEND} writes none")


@pytest.fixture
def run(capsys):
    """Run a command line; return its code, stdout, and stderr."""
    return CommandLine(capsys).run


@pytest.fixture
def found(capsys):
    """Run a command line with --json; return its code and the result."""
    return CommandLine(capsys).json


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return the file of a tiny model."""
    return save_tiny(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def artifact(path, tmp_path_factory):
    """Return the model's artifact, written by the command."""
    folder = tmp_path_factory.mktemp("cli") / "artifact"
    arguments = ["export", str(path), "--format", FORMAT, "--out", str(folder)]
    assert run_command(arguments) == 0
    return folder


@pytest.mark.one_backend
@writes
def test_export_leaves_a_verified_artifact(found, artifact):
    code, result = found("inspect", artifact)
    assert code == 0
    assert result["format"] == FORMAT
    assert result["exported_on"] == BACKEND
    assert result["verified"]["largest_difference"] <= 1e-5


@pytest.mark.one_backend
@writes
def test_an_artifact_agrees_with_its_model(found, run, path, artifact):
    code, result = found("compare", path, artifact)
    assert code == 0
    assert result["agrees"]
    assert result["tolerance"] == 1e-5
    assert result["speed"]["ratio"] > 0
    code, out, err = run("bench", artifact, "--tokens", 6)
    assert (code, err) == (0, "")
    assert "(1, 6, 8)" in out


@pytest.mark.skipif(BACKEND == "tensorflow", reason="other backends cover it")
def test_a_place_that_cannot_be_written(run, path, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "artifact"
    code, _, err = run("export", path, "--format", "torch", "--out", out)
    assert code == 1
    assert "`--out`" in err
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    code, _, err = run("export", path, "--format", "torch", "--out", full)
    assert code == 1
    assert "contains something else" in err
    assert (full / "mine.txt").read_text() == "mine"


def test_without_a_formats_packages(run, path, tmp_path, monkeypatch):
    here = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "openvino" else here(name, *more),
    )
    out = tmp_path / "x"
    code, _, err = run("export", path, "--format", "openvino", "--out", out)
    assert code == 1
    assert 'pip install "keras-moe[export]"' in err
    assert not out.exists()
