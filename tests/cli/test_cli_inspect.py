"""Test the report of `keras-moe inspect`, and how names are printed."""

import importlib.util
import sys

import keras
import pytest
from command_line import (
    EXPERT,
    EXPERTS,
    TOP_K,
    WIDTH,
    CommandLine,
    save_tiny,
    write_manifest,
)

import keras_moe
from keras_moe.export import FORMATS


@pytest.fixture
def run(capsys):
    """Run a command line; return its code, stdout, and stderr."""
    return CommandLine(capsys).run


@pytest.fixture
def found(capsys):
    """Run a command line with --json; return its code and the result."""
    return CommandLine(capsys).json


@pytest.fixture
def manifest(tmp_path):
    """Return an artifact that no runtime can load."""
    return write_manifest(tmp_path)


def test_inspect_counts_parameters_and_bytes(found, tmp_path):
    path = save_tiny(tmp_path)
    parameters = keras.models.load_model(path).count_params()
    code, result = found("inspect", path)
    assert code == 0
    assert result["kind"] == "model"
    assert result["bytes"] == path.stat().st_size
    assert result["parameters"] == parameters
    idle = (EXPERTS - TOP_K) * EXPERT
    assert result["active_parameters"] == parameters - idle
    assert result["expert_bytes"] == 4 * EXPERTS * EXPERT
    assert result["versions"] == {"keras": keras.version()}
    assert set(result["formats"]) == set(FORMATS)
    [mixture] = result["mixtures"]
    assert mixture["expert_parameters"] == EXPERTS * EXPERT
    assert (mixture["num_experts"], mixture["top_k"]) == (EXPERTS, TOP_K)
    assert result["inputs"][0]["shape"] == [None, None, WIDTH]


def test_inspect_of_an_artifact_needs_only_its_manifest(found, manifest):
    code, result = found("inspect", manifest)
    assert code == 0
    assert result["kind"] == "artifact"
    assert list(result["formats"]) == ["onnx"]
    assert result["expert_bytes"] == 2 * 12800
    assert result["verified"]["largest_difference"] == 2e-7


def test_the_text_of_inspect(run, manifest):
    code, out, err = run("inspect", manifest)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "active per token 200 (6%)" in text
    assert "onnx artifact, exported on jax, written by tensorflow" in text
    assert "13.2 kB, of experts 25.6 kB" in text
    assert "largest difference 2.0e-07, tolerance 1e-05" in text
    assert "second Router 32 1 dropless 1.25 3,200 12.8 kB" in text


ODD = "a[red]b[bold]c:smile:"


@pytest.mark.one_backend
@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow refuses such names, and Keras keeps their scope",
)
def test_names_with_brackets_are_printed_unchanged(run, tmp_path, monkeypatch):
    """Rich would parse brackets as markup, and `:smile:` as an emoji."""
    monkeypatch.setenv("COLUMNS", "400")
    block = keras_moe.MoEBlock(2, 3, name=ODD)
    file = tmp_path / "[" / "b]" / f"{ODD}.keras"
    file.parent.mkdir(parents=True)
    keras.Sequential([keras.Input((4,), name=f"{ODD}_"), block], name=ODD).save(
        file
    )
    code, out, err = run("inspect", file)
    assert (code, err) == (0, "")
    # The path, the model, the input, and the mixture have the name.
    assert out.count(ODD) == 4
    assert str(file) in out
    for command in ("bench", file), ("compare", file, file):
        code, out, err = run(*command)
        assert (code, err) == (0, "")
        assert str(file) in out
    code, _, err = run("inspect", tmp_path / "[" / "b] nothing")
    assert (code, str(tmp_path / "[" / "b] nothing") in err) == (2, True)


def test_an_artifact_in_a_folder_with_brackets(run, manifest):
    folder = manifest.rename(manifest.parent / "a[red]b[")
    code, out, _ = run("inspect", folder)
    assert code == 0
    assert "a[red]b[" in "".join(out.split())


MY_LAYERS = """
import keras


@keras.saving.register_keras_serializable(package="cli_test")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return x + x
"""


def test_a_module_registers_its_classes(run, tmp_path, monkeypatch):
    (tmp_path / "cli_test_layers.py").write_text(MY_LAYERS)
    with monkeypatch.context() as importing:
        importing.syspath_prepend(tmp_path)
        layers = importlib.import_module("cli_test_layers")
    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((4,)), layers.Doubled()]).save(path)
    keras.saving.get_custom_objects().pop("cli_test>Doubled")
    monkeypatch.delitem(sys.modules, "cli_test_layers")
    code, _, err = run("inspect", path)
    assert code == 1
    assert "--module" in err
    code, _, err = run("inspect", path, "--module", "cli_test_layers")
    assert code == 1
    assert "PYTHONPATH" in err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code, out, _ = run("inspect", path, "--module", "cli_test_layers")
    assert code == 0
    assert "no mixture of experts" in out
