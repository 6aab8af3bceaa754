"""Test ways to train: remat, half precision, callbacks, frozen layers."""

import keras
import numpy as np
import pytest
from user_layers import D, Residual, Subclassed

from keras_moe import MoEBlock, Router
from keras_moe.callbacks import BalanceGuard, RoutingMetrics


def make_data(samples=32):
    """Return tokens, and a target that depends on two of their features."""
    x = np.random.default_rng(0).normal(size=(samples, 5, D)).astype("float32")
    return x, np.tanh(x[..., :2].sum(axis=(1, 2)))[:, None]


def fitted(model, epochs=6, callbacks=()):
    """Compile and train a model, and return the loss of each epoch."""
    x, y = make_data()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return history.history["loss"]


def assert_learned(losses):
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]


def balanced_block():
    """Return a block whose router updates state: the per-expert bias."""
    router = Router(4, scoring="sigmoid", expert_bias=True)
    return MoEBlock(4, 12, router=router)


def with_head(inputs, x):
    """Return a model with one output per example."""
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def block_model(block):
    """Return a model with the block on a residual path."""
    inputs = keras.Input((None, D))
    x = keras.layers.Dense(D)(inputs)
    return with_head(inputs, x + block(x))


def test_recomputation_changes_nothing():
    keras.utils.set_random_seed(1)
    plain = block_model(balanced_block())
    with keras.RematScope("full"):
        block = balanced_block()
    recomputed = block_model(block)
    recomputed.set_weights(plain.get_weights())
    losses = [fitted(model) for model in (plain, recomputed)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for one, other in zip(plain.weights, recomputed.weights, strict=True):
        if "seed" not in one.path:
            np.testing.assert_allclose(
                one.numpy(), other.numpy(), atol=1e-5, err_msg=one.path
            )


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_in_half_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((None, D))
        layer = Residual()
        model = with_head(inputs, layer(inputs))
    finally:
        keras.config.set_dtype_policy(before)
    assert_learned(fitted(model))
    assert layer.block.router.kernel.dtype == "float32"
    assert layer.block.compute_dtype == "bfloat16"
    expected = "float32" if policy == "mixed_bfloat16" else "bfloat16"
    assert layer.block.experts.up_kernel.dtype == expected


def all_callbacks(folder):
    """Return the callbacks of the package, and those that users add."""
    keras_own = keras.callbacks
    return [
        RoutingMetrics(),
        BalanceGuard(),
        keras_own.CSVLogger(str(folder / "log.csv")),
        keras_own.EarlyStopping("loss", patience=9, restore_best_weights=True),
        keras_own.LearningRateScheduler(lambda epoch, rate: rate),
        keras_own.ModelCheckpoint(str(folder / "best.keras"), "loss"),
        keras_own.ReduceLROnPlateau("loss", patience=9),
        keras_own.TerminateOnNaN(),
    ]


def test_a_model_that_fit_builds_with_all_callbacks(tmp_path):
    model = Subclassed()
    losses = fitted(model, callbacks=all_callbacks(tmp_path))
    assert_learned(losses)
    load = model.block.expert_load.numpy()
    np.testing.assert_allclose(load.sum(), 1.0, atol=1e-6)
    history = model.history.history
    routed = [name for name in history if "imbalance" in name]
    assert routed, sorted(history)
    assert all(len(history[name]) == 6 for name in routed)
    header = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert set(routed) <= set(header)
    best = keras.saving.load_model(tmp_path / "best.keras")
    x, _ = make_data(3)
    assert best.predict(x, verbose=0).shape == (3, 1)


def frozen_trunk():
    """Return a model on a trained and frozen trunk, and return the trunk."""
    inputs = keras.Input((None, D))
    x = keras.layers.Dense(D)(inputs)
    trunk = keras.Model(inputs, x + balanced_block()(x))
    fitted(with_head(inputs, trunk(inputs)), epochs=2)
    trunk.trainable = False
    return with_head(inputs, trunk(inputs)), trunk


def assert_only_the_head_learns(model, trunk):
    x, _ = make_data()
    outputs = trunk.predict(x, verbose=0)
    weights = trunk.get_weights()
    head = model.layers[-1].get_weights()
    fitted(model, epochs=3)
    np.testing.assert_array_equal(trunk.predict(x, verbose=0), outputs)
    for before, after in zip(weights, trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)
    assert np.abs(model.layers[-1].get_weights()[0] - head[0]).max() > 0


def test_a_frozen_trunk_does_not_change():
    assert_only_the_head_learns(*frozen_trunk())


def test_a_loaded_frozen_trunk_does_not_change(tmp_path):
    model, trunk = frozen_trunk()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    found = next(x for x in again.layers if x.name == trunk.name)
    assert not found.trainable_weights
    assert_only_the_head_learns(again, found)
