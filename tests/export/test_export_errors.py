"""Test the errors of `export`, and that no half-written artifact stays."""

import errno
import importlib.util
import json

import keras
import numpy as np
import pytest
from backend import BACKEND

import keras_moe
from keras_moe.export import exporting, load
from keras_moe.export.exporting import export
from keras_moe.export.probes import probes_of, unreached
from keras_moe.export.signature import as_functional

OWN = "torch" if BACKEND == "torch" else "tf_saved_model"


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((None, 4))
    return keras.Model(inputs, keras_moe.MoEBlock(2, 4)(inputs))


@pytest.fixture
def half_written(monkeypatch):
    """Return a function that makes the writer fail after its first bytes."""

    def fail_with(error):
        def write(model, format, folder, *rest):
            (rest[-1] if rest else folder).joinpath("half").write_text("half")
            raise error

        def write_elsewhere(model, format, backend, folder):
            write(model, format, folder)

        monkeypatch.setattr(exporting, "write", write)
        monkeypatch.setattr(exporting, "write_elsewhere", write_elsewhere)

    return fail_with


def test_unknown_format(model, tmp_path):
    with pytest.raises(ValueError, match="`format` must be one of.*'pickle'"):
        export(model, tmp_path / "a", "pickle")


def test_a_missing_package_names_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'install "keras-moe\[export\]"'):
        export(model, tmp_path / "a", "onnx")
    with pytest.raises(ImportError, match=r'install "keras-moe\[torch\]"'):
        export(model, tmp_path / "a", "torch")


def test_a_layer_is_not_a_model(tmp_path):
    with pytest.raises(TypeError, match="`model` must be a keras.Model"):
        export(keras_moe.MoEBlock(2, 4), tmp_path / "a")


def test_unknown_quantization(model, tmp_path):
    with pytest.raises(ValueError, match="`quantize` must be None or one of"):
        export(model, tmp_path / "a", quantize="int2")


def test_a_signature_of_other_inputs(model, tmp_path):
    spec = keras.InputSpec(shape=(None, 4), dtype="float32")
    with pytest.raises(ValueError, match="one spec per input"):
        export(model, tmp_path / "a", OWN, [spec, spec])


def test_a_model_named_like_its_input(tmp_path):
    inputs = keras.Input((None, 4), name="tokens")
    model = keras.Model(inputs, keras_moe.MoEBlock(2, 4)(inputs), name="tokens")
    with pytest.raises(ValueError, match="must not have the name of one of"):
        export(model, tmp_path / "a", OWN)


def test_a_place_below_a_file(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="`path` must be a place that can be"):
        export(model, tmp_path / "file" / "a", OWN)


def test_disk_full(model, tmp_path, half_written):
    """The previous folder stays, and no other file."""
    old = tmp_path / "a"
    old.mkdir()
    half_written(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match="No space left on device.*make room"):
        export(model, old, OWN)
    assert list(tmp_path.rglob("*")) == [old]


def test_a_converter_that_fails_leaves_nothing(model, tmp_path, half_written):
    half_written(RuntimeError("cannot convert"))
    with pytest.raises(RuntimeError, match="cannot convert"):
        export(model, tmp_path / "a", OWN)
    assert list(tmp_path.iterdir()) == []


def manifest(**changes):
    return {"schema": 1, "format": "onnx", **changes}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "must be what keras_moe wrote"),
        ("[]", "must be what keras_moe wrote"),
        ('{"schema": 1, "format": "onnx"}', "must be what keras_moe wrote"),
        (json.dumps(manifest(schema=99)), "schema 99"),
        (json.dumps(manifest(format="caffe")), "format 'caffe'"),
    ],
)
def test_a_manifest_that_is_not_ours(text, match, tmp_path):
    (tmp_path / "moe.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        load(tmp_path)


def test_no_artifact(tmp_path):
    with pytest.raises(FileNotFoundError, match="with a moe.json in it"):
        load(tmp_path)


def test_probes_reach_every_expert():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 16))
    block = keras_moe.MoEBlock(8, 4, top_k=1)
    model = as_functional(keras.Model(inputs, block(inputs)))
    probes = probes_of(model)
    assert unreached(probes) == []
    counts = [p.observation.pairs[block.path] for p in probes]
    # The first probes have 2 x 5 and 3 x 9 tokens, with one expert per token.
    assert [c.sum() for c in counts[:2]] == [10, 27]
    assert (sum(counts) > 0).all()


def test_no_length_fits():
    inputs = keras.Input((None, 4))
    outputs = keras.layers.Reshape((7, 2, 2))(inputs)
    model = as_functional(keras.Model(inputs, outputs))
    with pytest.raises(ValueError, match="of one of the lengths"):
        probes_of(model)


@pytest.mark.parametrize("inputs", [{"other": 1}, [1, 2]])
def test_inputs_that_are_not_the_models(inputs):
    from keras_moe.export.artifact import named_inputs

    specs = [{"name": "tokens", "dtype": "float32"}]
    with pytest.raises(ValueError, match=r"1 arrays, or a dict of \['tokens'"):
        named_inputs(inputs, specs)
    cast = named_inputs(np.ones((2, 4), "float64"), specs)["tokens"]
    assert cast.dtype == "float32"
