"""Test which formulation TensorFlow uses, and how often it is traced."""

import keras
import numpy as np
import pytest
from backend import BACKEND

import keras_moe
from keras_moe import kernels
from keras_moe.kernels import grouped, reference

if BACKEND != "tensorflow":
    pytest.skip("TensorFlow's formulations", allow_module_level=True)

import tensorflow as tf

from keras_moe.kernels.tensorflow import loop, split

MANY, FEW, T, D, F = 9, 8, 6, 4, 16
X = np.ones((4, T, D), "float32")


@pytest.fixture
def chosen(monkeypatch):
    """Return a list to which each chosen formulation is added."""
    modules, choose = [], grouped.implementation

    def noted(x, kernel):
        modules.append(choose(x, kernel))
        return modules[-1]

    monkeypatch.setattr(grouped, "implementation", noted)
    return modules


def model_of(num_experts, num_blocks=1):
    """Return a compiled model of `num_blocks` blocks."""
    inputs = x = keras.Input((T, D))
    for _ in range(num_blocks):
        x = keras_moe.MoEBlock(num_experts, F)(x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("num_experts", [FEW, MANY])
def test_calls_without_gradients_are_unrolled(chosen, num_experts, tmp_path):
    """LiteRT does not support loops of unknown length."""
    model = model_of(num_experts)
    chosen.clear()
    model.predict_on_batch(X)
    kernels.compiled(lambda x: model(x, training=False), model.variables)(X)
    model.export(tmp_path / "model.tflite", verbose=False, format="litert")
    assert set(chosen) == {split}


@pytest.mark.parametrize(
    ("num_experts", "expected"), [(FEW, split), (MANY, loop)]
)
def test_training_of_many_experts_is_a_loop(chosen, num_experts, expected):
    model = model_of(num_experts)
    chosen.clear()
    model.train_on_batch(X, X)
    assert set(chosen) == {expected}


def test_forward_mode_takes_the_reference():
    x, kernel = tf.ones((4, D)), tf.ones((2, D, F))
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)):
        assert kernels.implementation(x, kernel) is reference


def test_blocks_of_one_shape_share_a_loop():
    """Otherwise, 24 blocks of 128 experts would take minutes to trace."""
    model = model_of(MANY, num_blocks=3)
    loop._traced.cache_clear()
    model.train_on_batch(X, X)
    assert loop._traced.cache_info().misses == 1
