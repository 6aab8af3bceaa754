"""Export every format, run it in its own runtime, and compare the outputs."""

import json

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy

import keras_moe
from keras_moe.export import FORMATS, describe, export, load, verify
from keras_moe.export.observing import observer

D, E = 8, 4


# `make test-fast` runs the first format, and `make test` runs all of these. The
# tests of other formats are slow.
QUICK = {
    "jax": ["litert"],
    "tensorflow": ["tf_saved_model", "litert", "onnx"],
    "torch": ["torch"],
}[BACKEND]


def two_inputs():
    """Return a model of tokens and ids; its second block drops tokens."""
    tokens = keras.Input((None, D), name="tokens")
    ids = keras.Input((None,), dtype="int32", name="ids")
    unit = keras_moe.ClippedSwiGLU(0.5)
    x = tokens + keras.layers.Embedding(5, D, name="embedding")(ids)
    x = keras_moe.MoEBlock(E, 12, gated=True, activation=unit)(x)
    limited = keras_moe.MoEBlock(
        E, 12, eval_capacity_factor=0.5, priority="score"
    )
    return keras.Model([tokens, ids], [limited(x), keras.layers.Dense(2)(x)])


def one_input():
    inputs = keras.Input((None, D), name="tokens")
    return keras.Model(inputs, keras_moe.MoEBlock(E, 12, top_k=1)(inputs))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return two_inputs()


@pytest.fixture(scope="module")
def artifact_path(tmp_path_factory):
    """Return an artifact of `one_input`, and its model."""
    keras.utils.set_random_seed(4)
    model = one_input()
    path = tmp_path_factory.mktemp("artifacts") / "one"
    format = "torch" if BACKEND == "torch" else "tf_saved_model"
    export(model, path, format)
    return path, model


def speed(format):
    """Return the marks of a format's test."""
    if format not in QUICK:
        return [pytest.mark.slow]
    return [pytest.mark.fast] if format == QUICK[0] else []


@pytest.mark.parametrize(
    "format", [pytest.param(f, marks=speed(f)) for f in FORMATS]
)
def test_a_format(format, model, tmp_path, rng):
    """The outputs are the model's, also at sizes that `export` did not try."""
    manifest = export(model, tmp_path / "artifact", format)
    assert (tmp_path / "artifact" / FORMATS[format].file).exists()
    assert manifest["exported_on"] == BACKEND
    verified = manifest["verified"]
    assert verified["largest_difference"] <= FORMATS[format].tolerance
    assert verified["unreached"] == {}
    small, large = verified["shapes"][:2]
    assert small == [[2, 5, D], [2, 5]] and large == [[3, 9, D], [3, 9]]
    artifact = load(tmp_path / "artifact")
    assert artifact.manifest == manifest
    # On JAX, a call of the model compiles for seconds, so `make test` has one.
    once_on_jax = BACKEND == "jax" and format in QUICK
    for batch, length in [(4, 7)] if once_on_jax else [(1, 1), (4, 7)]:
        inputs = {
            "ids": rng.integers(0, 5, (batch, length)),
            "tokens": rng.normal(size=(batch, length, D)).astype("float32"),
        }
        expected = model([inputs["tokens"], inputs["ids"].astype("int32")])
        received = artifact(inputs)
        for mine, other in zip(expected, received, strict=True):
            np.testing.assert_allclose(other, to_numpy(mine), atol=1e-5)


@pytest.mark.one_backend
def test_the_content_of_the_manifest(artifact_path):
    path, _ = artifact_path
    manifest = json.loads((path / "moe.json").read_text())
    (mixture,) = manifest["mixtures"]
    expert = 2 * D * 12 + 12 + D  # two kernels and their biases
    assert mixture["expert_parameters"] == E * expert
    assert mixture["expert_bytes"] == 4 * E * expert
    assert (mixture["num_experts"], mixture["top_k"]) == (E, 1)
    idle = manifest["parameters"] - manifest["active_parameters"]
    assert idle == (E - 1) * expert
    assert manifest["inputs"] == [
        {"name": "tokens", "shape": [None, None, D], "dtype": "float32"}
    ]
    assert manifest["versions"]["keras"] == keras.__version__


@pytest.mark.one_backend
def test_one_flipped_expert_is_found(artifact_path):
    path, model = artifact_path
    assert verify(model, path)["unreached"] == {}
    kernel = model.layers[-1].experts.down_kernel
    kept = to_numpy(kernel)
    flipped = kept.copy()
    flipped[E - 1] *= -1
    kernel.assign(flipped)
    with pytest.raises(ValueError, match="must equal the model's"):
        verify(model, path)
    kernel.assign(kept)


@pytest.mark.one_backend
def test_an_expert_that_no_input_reaches_is_named(artifact_path):
    path, model = artifact_path
    block = model.layers[-1]
    block.disable_experts([2])
    with pytest.warns(UserWarning, match=r"No input reached .*\[2\]"):
        with pytest.raises(ValueError, match="must equal the"):
            verify(model, path)
    block.enable_experts()


@pytest.mark.one_backend
def test_blocks_with_equal_paths_are_distinguished():
    """Each of the two blocks has its own pairs and its own description."""
    inputs = keras.Input((D,))
    x = inputs
    for name in ("one", "two"):
        block = keras_moe.MoEBlock(E, 12, top_k=1, name="moe")
        x = keras.Model(inputs, block(inputs), name=name)(x)
    model = keras.Model(inputs, x)
    pairs = observer(model)([np.ones((3, D), "float32")]).pairs
    assert {path: n.sum() for path, n in pairs.items()} == {
        "moe": 3,
        "moe_1": 3,
    }
    mixtures = describe(model)["mixtures"]
    assert [m["path"] for m in mixtures] == ["moe", "moe_1"]


@pytest.mark.one_backend
def test_the_users_own_data(artifact_path, rng):
    path, model = artifact_path
    data = rng.normal(size=(40, 6, D))
    shapes = verify(model, path, data=data)["shapes"]
    assert shapes[:2] == [[[2, 6, D]], [[3, 6, D]]]


@pytest.mark.skipif(
    BACKEND != "torch", reason="only its own process can load this class"
)
def test_a_subclass_needs_a_signature(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.block = keras_moe.MoEBlock(E, 6)

        def call(self, inputs):
            return self.block(inputs["x"])

    model = Own()
    with pytest.raises(ValueError, match="`input_signature` is needed"):
        export(model, tmp_path / "a", "torch")
    spec = keras.InputSpec(shape=(3, None, D), dtype="float32")
    manifest = export(model, tmp_path / "a", "torch", [{"x": spec}])
    assert manifest["inputs"][0]["shape"] == [3, None, D]
    assert manifest["verified"]["shapes"][:2] == [[[3, 5, D]], [[3, 9, D]]]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="text is TensorFlow's")
def test_a_model_of_text(tmp_path):
    texts = ["a good film", "a bad film", "good", "bad bad"]
    vectorize = keras.layers.TextVectorization(max_tokens=20)
    vectorize.adapt(texts)
    inputs = keras.Input((), dtype="string", name="text")
    x = keras.layers.Embedding(20, D)(vectorize(inputs))
    x = keras_moe.MoEBlock(E, 6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    manifest = export(model, tmp_path / "text")
    assert manifest["verified"]["unreached"] == {}
    artifact = load(tmp_path / "text")
    import tensorflow as tf

    np.testing.assert_allclose(
        artifact(np.array(texts))[0],
        to_numpy(model(tf.constant(texts))),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="must be 'tf_saved_model' for a"):
        export(model, tmp_path / "other", "litert")


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="SavedModel's own tool")
def test_saved_model_cli(artifact_path, tmp_path):
    import pathlib
    import subprocess
    import sys

    path, model = artifact_path
    tool = pathlib.Path(sys.executable).with_name("saved_model_cli")
    signature = ["--dir", path, "--tag_set", "serve"]
    signature += ["--signature_def", "serve"]
    np.save(tmp_path / "x.npy", np.ones((2, 3, D), "float32"))
    command = [tool, "run", *signature, "--inputs"]
    command += [f"tokens={tmp_path / 'x.npy'}", "--outdir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "output_0.npy"),
        to_numpy(model(np.ones((2, 3, D), "float32"))),
        atol=1e-5,
    )
