"""Test the differences, tolerances, and inputs of `keras-moe compare`."""

import keras
import numpy as np
import pytest
from command_line import WIDTH, CommandLine, save_tiny, tiny

from keras_moe_cli.runnable import open_runnable

BACKEND = keras.backend.backend()


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


def test_compare_finds_the_difference(found, run, path, tmp_path):
    other = keras.models.load_model(path)
    head = other.get_layer("head")
    head.bias.assign(np.array([0.0, 0.5, 0.0], "float32"))
    other.save(tmp_path / "other.keras")
    data = tmp_path / "inputs.npz"
    x = np.random.default_rng(0).normal(size=(5, 4, WIDTH))
    np.savez(data, tokens=x.astype("float32"))
    arguments = "compare", path, tmp_path / "other.keras", "--data", data
    code, result = found(*arguments)
    assert code == 1
    assert result["shapes"] == [[[5, 4, WIDTH]]]
    [output] = result["outputs"]
    assert output["largest_difference"] == pytest.approx(0.5, abs=1e-5)
    assert not output["agrees"]
    code, out, err = run(*arguments, "--tolerance", "0.6")
    assert (code, err) == (0, "")
    assert "5.0e-01" in out


def test_compare_needs_two_forms_of_one_model(run, path, tmp_path):
    tiny(outputs=5).save(tmp_path / "wider.keras")
    code, out, err = run("compare", path, tmp_path / "wider.keras")
    assert (code, out) == (1, "")
    assert "must have outputs of the same number and shapes" in err
    assert "[[None, None, 5]]" in err
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]).save(
        tmp_path / "flat.keras"
    )
    code, out, err = run("compare", path, tmp_path / "flat.keras")
    assert (code, out) == (1, "")
    assert "must have inputs of the same number and shapes" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "policy, tolerance", [("float32", 1e-5), ("mixed_bfloat16", 2e-2)]
)
def test_half_floats_may_differ_by_more(tmp_path, policy, tolerance):
    keras.config.set_dtype_policy(policy)
    ids = keras.Input((None,), dtype="int32", name="ids")
    outputs = keras.layers.Embedding(7, 4)(ids)
    keras.Model(ids, outputs).save(tmp_path / "model.keras")
    runnable = open_runnable(tmp_path / "model.keras")
    assert runnable.tolerance == tolerance
    assert runnable.inputs[0]["below"] == 7


@pytest.mark.skipif(BACKEND != "tensorflow", reason="words are TensorFlow's")
def test_words_are_exact(tmp_path):
    layers = [
        keras.Input((1,), dtype="string"),
        keras.layers.TextVectorization(
            vocabulary=["a", "b"], output_sequence_length=3
        ),
        keras.layers.Embedding(4, 2),
    ]
    keras.Sequential(layers).save(tmp_path / "model.keras")
    runnable = open_runnable(tmp_path / "model.keras")
    assert runnable.tolerance == 1e-5
    [output] = runnable.run([np.array([["a b"], ["b"]])])
    assert output.shape == (2, 3, 2)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "No such file"),
        (b"no arrays", "numpy.savez"),
        ({"words": np.zeros((2, 3, WIDTH))}, "tokens"),
        ({"tokens": np.zeros((2, 3, WIDTH + 1))}, str([2, 3, WIDTH + 1])),
        ({"tokens": np.zeros(())}, "same number of rows"),
    ],
    ids=["missing", "damaged", "name", "shape", "scalar"],
)
def test_bad_data(run, path, tmp_path, content, words):
    data = tmp_path / "inputs.npz"
    if isinstance(content, bytes):
        data.write_bytes(content)
    elif content is not None:
        np.savez(data, **content)
    code, out, err = run("compare", path, path, "--data", data)
    assert (code, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
