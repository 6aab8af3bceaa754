"""Where TensorFlow's tiles are taken: here, on one thread, and not exported."""

import keras
import numpy as np
import pytest
from backend import BACKEND

import keras_moe
from keras_moe import kernels
from keras_moe.kernels import choice

if BACKEND != "tensorflow":
    pytest.skip("a formulation of TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_moe.kernels import tensorflow_primitives as primitives

T, D, F = 6, 4, 512
SPLIT, TILES = "tensorflow_split", "tensorflow_tiles"


@pytest.fixture
def one_thread(monkeypatch):
    """As if the machine were one with a single thread of AVX2."""
    monkeypatch.setattr(primitives, "one_thread_of_avx2", lambda: True)


@pytest.fixture
def chosen(monkeypatch):
    """The names of the formulations that computed, in order."""
    names, module = [], choice._module

    def noted(name):
        names.append(name)
        return module(name)

    monkeypatch.setattr(choice, "_module", noted)
    return names


def model_of(inner=F, **compile_options):
    """A block and its loss; not traced by what built it."""
    inputs = keras.Input((T, D))
    outputs = keras_moe.MoEBlock(4, inner)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", **compile_options)
    return model


X = np.ones((4, T, D), "float32")


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.predict(X, verbose=0),
        lambda model: model.predict_on_batch(X),
        lambda model: model.evaluate(X, X, verbose=0),
        lambda model: model.test_on_batch(X, X),
        lambda model: model(X),
    ],
    ids=["predict", "predict_on_batch", "evaluate", "test_on_batch", "eager"],
)
@pytest.mark.parametrize("steps", [1, 2])
def test_what_runs_here_takes_tiles(one_thread, chosen, call, steps):
    model = model_of(steps_per_execution=steps)
    chosen.clear()
    call(model)
    assert set(chosen) == {TILES}


def test_a_program_of_the_package_takes_tiles(one_thread, chosen):
    """`compiled` is what `generate` runs in."""
    model = model_of()
    chosen.clear()
    kernels.compiled(lambda x: model(x, training=False), model.variables)(X)
    assert set(chosen) == {TILES}


def test_training_does_not(one_thread, chosen):
    model = model_of()
    chosen.clear()
    model.train_on_batch(X, X)
    assert set(chosen) == {SPLIT}


@pytest.mark.parametrize("file", ["saved", "model.tflite"])
def test_exports_do_not(one_thread, chosen, tmp_path, file):
    """Neither the copies nor the loop are for another machine."""
    model = model_of()
    model.predict_on_batch(X)
    chosen.clear()
    litert = file.endswith("tflite")
    options = {"format": "litert"} if litert else {}
    model.export(tmp_path / file, verbose=False, **options)
    assert set(chosen) == {SPLIT}


def test_a_graph_of_the_users_does_not(one_thread, chosen):
    """It may be saved."""
    model = model_of()
    chosen.clear()
    tf.function(lambda x: model(x, training=False))(tf.constant(X))
    assert set(chosen) == {SPLIT}


def test_widths_that_are_not_slow_do_not(one_thread, chosen):
    model = model_of(inner=F + 16)
    chosen.clear()
    model.predict_on_batch(X)
    assert set(chosen) == {SPLIT}


def test_half_precision_does_not(one_thread, chosen):
    x, kernel = tf.zeros((32, D), "bfloat16"), tf.zeros((2, D, F), "bfloat16")
    kernels.implementation(x, kernel)
    assert chosen == [SPLIT]


@pytest.mark.parametrize(("rows", "name"), [(31, SPLIT), (32, TILES)])
def test_decoding_does_not(one_thread, chosen, rows, name):
    kernels.implementation(tf.zeros((rows, D)), tf.zeros((2, D, F)))
    assert chosen == [name]


@pytest.mark.parametrize(
    ("threads", "extensions", "expected"),
    [
        ("1", {"found": ["SSE42", "AVX2"]}, True),
        ("1", {"baseline": ["X86_V2"], "found": ["X86_V3"]}, True),
        ("1", {"baseline": ["X86_V3"]}, True),
        ("2", {"found": ["X86_V3"]}, False),
        ("1", {"found": ["X86_V3", "X86_V4"]}, False),
        ("1", {"found": ["AVX2", "AVX512F"]}, False),
        ("1", {"baseline": ["NEON", "ASIMD"]}, False),
        ("1", {}, False),
    ],
)
def test_one_thread_of_avx2(monkeypatch, threads, extensions, expected):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", threads)
    shown = {"SIMD Extensions": extensions} if extensions else {}
    monkeypatch.setattr(np, "show_config", lambda mode: shown)
    assert primitives.one_thread_of_avx2.__wrapped__() is expected


def test_tiles_are_as_equal_as_may_be():
    from keras_moe.kernels import tensorflow_tiles

    sizes = tf.constant([513, 0, 512, 1025, 1], tf.int32)
    owners, starts, lengths = tensorflow_tiles._tiles(sizes)
    assert owners.numpy().tolist() == [0, 0, 2, 3, 3, 3, 4]
    assert lengths.numpy().tolist() == [257, 256, 512, 342, 342, 341, 1]
    assert starts.numpy().tolist() == [0, 257, 513, 1025, 1367, 1709, 2050]


def test_blocks_of_one_shape_share_a_graph(one_thread):
    """24 blocks of 128 experts would take minutes to trace, else."""
    from keras_moe.kernels import tensorflow_loop

    inputs = x = keras.Input((T, D))
    for _ in range(3):
        x = keras_moe.MoEBlock(4, F)(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    tensorflow_loop._traced.cache_clear()
    model.predict_on_batch(X)
    assert tensorflow_loop._traced.cache_info().misses == 1
