"""Routing figures in the epoch logs."""

import keras
import numpy as np
import pytest
from backend import to_numpy
from zoo import WIDTH

from keras_moe import MoEBlock, TransformerEncoderBlock
from keras_moe.callbacks import RoutingMetrics


def two_block_model():
    inputs = keras.Input((5, WIDTH))
    x = MoEBlock(4, 6, capacity_factor=0.5, name="first")(inputs)
    x = TransformerEncoderBlock(2, MoEBlock(2, 6, top_k=1), name="enc")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model


def test_epoch_logs_hold_the_epochs_means(rng):
    """A learning rate of 0 makes each epoch, and a recount, the same."""
    model = two_block_model()
    model.optimizer.learning_rate = 0.0
    x = rng.normal(size=(8, 5, WIDTH)).astype("float32")
    history = model.fit(
        x,
        np.zeros((8, 1)),
        epochs=3,
        batch_size=8,
        verbose=0,
        validation_data=(x[:2], np.zeros((2, 1))),
        callbacks=[RoutingMetrics()],
    ).history
    block = model.get_layer("first")
    _, assignment = block(x, return_assignment=True)
    chosen = to_numpy(assignment.expert_index)
    counts = np.bincount(chosen, minlength=4)
    # C = 2 * 40 * 0.5 / 4 = 10 places an expert.
    dropped = np.maximum(counts - 10, 0).sum() / 80
    for key, wanted in (
        ("moe/first/imbalance", counts.max() / 20),
        ("moe/first/fraction_dropped", dropped),
    ):
        np.testing.assert_allclose(history[key], [wanted] * 3, rtol=1e-5)
    enc = next(k for k in history if "enc" in k and k.endswith("imbalance"))
    np.testing.assert_allclose(
        history["moe/imbalance"],
        (np.array(history["moe/first/imbalance"]) + history[enc]) / 2,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        history["moe/fraction_dropped"], [dropped / 2] * 3, rtol=1e-5
    )


def test_a_callback_behind_it_sees_the_figures(rng):
    """As TensorBoard would, and the progress bar does."""
    seen = {}
    behind = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.update(logs)
    )
    x = rng.normal(size=(8, 5, WIDTH)).astype("float32")
    two_block_model().fit(
        x, np.zeros((8, 1)), verbose=0, callbacks=[RoutingMetrics(), behind]
    )
    assert {"moe/imbalance", "moe/fraction_dropped"} <= seen.keys()
    assert seen["moe/imbalance"] >= 1


def test_a_model_without_a_block(rng):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model` must contain a MoEBlock"):
        model.fit(
            np.zeros((4, 3)),
            np.zeros((4, 1)),
            verbose=0,
            callbacks=[RoutingMetrics()],
        )
