"""Test the routing figures in the epoch logs, and the balance guard."""

import warnings

import keras
import numpy as np
import pytest
from backend import to_numpy
from zoo import WIDTH

from keras_moe import MoEBlock, TransformerEncoderBlock
from keras_moe.callbacks import BalanceGuard, RoutingMetrics


def two_block_model():
    inputs = keras.Input((5, WIDTH))
    x = MoEBlock(4, 6, capacity_factor=0.5, name="first")(inputs)
    x = TransformerEncoderBlock(2, MoEBlock(2, 6, top_k=1), name="enc")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("sgd", "mse")
    return model


def test_epoch_logs_hold_the_epochs_means(rng):
    """With a learning rate of 0, each epoch has the figures of a recount."""
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
        callbacks=[RoutingMetrics(per_layer=True)],
    ).history
    block = model.get_layer("first")
    _, assignment = block(x, return_assignment=True)
    chosen = to_numpy(assignment.expert_index)
    counts = np.bincount(chosen, minlength=4)
    # C = 2 * 40 * 0.5 / 4 = 10 places per expert.
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


def test_a_callback_after_it_receives_the_figures(rng):
    """TensorBoard and the progress bar receive the figures in the same way."""
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


def test_the_blocks_means_alone_are_the_default(rng):
    """With one block, figures per layer would repeat the means."""
    x = rng.normal(size=(8, 5, WIDTH)).astype("float32")
    model = two_block_model()
    logs = model.fit(
        x, np.zeros((8, 1)), verbose=0, callbacks=[RoutingMetrics()]
    ).history
    assert [name for name in logs if name.startswith("moe/")] == [
        "moe/imbalance",
        "moe/fraction_dropped",
    ]


class UserLogger(keras.callbacks.Callback):
    """A callback that keeps the logs of the last epoch."""

    def on_epoch_end(self, epoch, logs=None):
        self.seen = dict(logs)


def before_the_figures(tmp_path):
    """Return callbacks that would miss the figures if they came first."""
    return [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.EarlyStopping("moe/imbalance"),
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        keras.callbacks.TensorBoard(tmp_path),
        UserLogger(),
    ]


def test_callbacks_that_would_miss_the_figures_are_named(tmp_path):
    """The order is checked when Keras builds the list of callbacks."""
    model = two_block_model()
    readers = before_the_figures(tmp_path)
    with pytest.warns(UserWarning) as caught:
        keras.callbacks.CallbackList(
            [*readers, RoutingMetrics()], model=model, add_history=True
        )
    texts = [str(warning.message) for warning in caught]
    (text,) = [text for text in texts if "RoutingMetrics" in text]
    assert (
        "Received: CSVLogger, EarlyStopping, LambdaCallback, TensorBoard, "
        "UserLogger before RoutingMetrics" in text
    )


def test_no_warning_for_callbacks_in_order(tmp_path):
    """Warnings are errors here; the first four callbacks need no figures."""
    quiet = UserLogger()
    quiet.reads_logs = False
    keras.callbacks.CallbackList(
        [
            keras.callbacks.EarlyStopping("val_loss"),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
            BalanceGuard(),
            quiet,
            RoutingMetrics(),
            *before_the_figures(tmp_path),
        ],
        model=two_block_model(),
    )
    RoutingMetrics().set_model(two_block_model())  # called without a list


def test_fit_warns_about_the_order(rng):
    x = rng.normal(size=(8, 5, WIDTH)).astype("float32")
    logger = UserLogger()
    with pytest.warns(UserWarning, match="Received: UserLogger before Rout"):
        two_block_model().fit(
            x, np.zeros((8, 1)), verbose=0, callbacks=[logger, RoutingMetrics()]
        )
    assert "moe/imbalance" not in logger.seen


class LayersInBuild(keras.Model):
    """A subclassed model whose block does not exist before its first call."""

    def build(self, input_shape):
        self.block = MoEBlock(4, 6, top_k=1, capacity_factor=1.0)
        self.head = keras.layers.Dense(1)
        self.block.build(input_shape)
        self.head.build(input_shape)

    def call(self, x, training=None):
        return self.head(self.block(x, training=training))


def deferred_models():
    """Yield models that `fit` builds (on TensorFlow, in its first step)."""
    yield keras.Sequential(
        [MoEBlock(4, 6, top_k=1, capacity_factor=1.0), keras.layers.Dense(1)]
    )
    yield LayersInBuild()


def test_models_that_fit_builds():
    """All tokens are equal, so one expert receives all 24 of each epoch.

    The capacity is C = ceil(24 / 4) = 6, so 18 of the 24 pairs are dropped.
    """
    x, y = np.ones((4, 6, 8)), np.ones((4, 6, 1))
    for model in deferred_models():
        model.compile(keras.optimizers.SGD(0.0), "mse")
        guard = BalanceGuard(patience=2)
        with pytest.warns(UserWarning, match="received less than 0.01 of an"):
            history = model.fit(
                x, y, epochs=2, verbose=0, callbacks=[RoutingMetrics(), guard]
            ).history
        np.testing.assert_allclose(history["moe/imbalance"], [4.0, 4.0])
        np.testing.assert_allclose(history["moe/fraction_dropped"], [0.75] * 2)
        assert [len(experts) for experts in guard.starving.values()] == [3]


def test_a_model_that_fit_builds_without_a_block():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="`model` must contain a MoEBlock"):
        model.fit(
            np.zeros((4, 3)),
            np.zeros((4, 1)),
            verbose=0,
            callbacks=[BalanceGuard()],
        )


def test_blocks_of_one_path_have_figures_of_their_own(rng):
    """Keras does not include a model's name in the paths of its layers."""
    inputs = keras.Input((5, WIDTH))
    x = inputs
    for name, num_experts in (("one", 2), ("two", 4), ("three", 2)):
        block = MoEBlock(num_experts, 6, name="moe")
        x = keras.Model(inputs, block(inputs), name=name)(x)
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = rng.normal(size=(8, 5, WIDTH)).astype("float32")
    logs = model.fit(
        x, x, verbose=0, callbacks=[RoutingMetrics(per_layer=True)]
    ).history
    own = [logs[f"moe/{p}/imbalance"][0] for p in ("moe", "moe_1", "moe_2")]
    # With `top_k=2`, two experts have the same load.
    assert own[0] == own[2] == 1 < own[1]
    np.testing.assert_allclose(logs["moe/imbalance"], [np.mean(own)])


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


def lazy_model():
    """Return a model and its block; expert 0 gets all tokens, 3 is disabled."""
    inputs = keras.Input((WIDTH,))
    block = MoEBlock(4, 6, top_k=1, name="lazy", load_balancing_weight=0.0)
    model = keras.Model(inputs, keras.layers.Dense(1)(block(inputs)))
    kernel = np.zeros((WIDTH, 4), "float32")
    kernel[0, 0] = 1.0
    block.router.kernel.assign(kernel)
    block.disable_experts([3])
    return model, block


def test_the_imbalance_is_of_the_experts_that_are_on():
    """One of three enabled experts gets every token: 1 / (1/3) = 3."""
    model, block = lazy_model()
    metrics = RoutingMetrics()
    metrics.set_model(model)
    metrics.on_train_begin()
    metrics.on_epoch_begin(0)
    block(np.eye(1, WIDTH, dtype="float32"), training=True)
    logs = {}
    metrics.on_epoch_end(0, logs)
    assert logs["moe/imbalance"] == pytest.approx(3)


def watch(guard, model, block, batches):
    """Run epochs of one batch each under a guard, and return its warnings."""
    guard.set_model(model)
    guard.on_train_begin()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch, x in enumerate(batches):
            guard.on_epoch_begin(epoch)
            block(x, training=True)
            guard.on_epoch_end(epoch)
    return [str(w.message) for w in caught if "Experts" in str(w.message)]


def test_the_guard_names_block_and_experts_once_in_a_row(rng):
    model, block = lazy_model()
    seen = []
    guard = BalanceGuard(on_starving=lambda *given: seen.append(given))
    x = 1 + rng.random(size=(8, WIDTH)).astype("float32")
    (message,) = watch(guard, model, block, [x] * 4)
    assert message.startswith("Experts [1, 2] of MoEBlock 'lazy' received")
    assert guard.starving == {"lazy": [1, 2]}
    assert seen == [(block, [1, 2])]
    # Below 0, expert 0 scores lowest, and expert 1 wins the tie with expert 2.
    assert watch(guard, model, block, [x, -x, x, x]) == [
        message.replace("[1, 2]", "[2]"),
        message.replace("[1, 2]", "[1]"),
    ]


def test_the_guard_stops_beside_early_stopping(rng):
    """The guard stops after epoch 2; `EarlyStopping` would run 5 epochs."""
    model, _ = lazy_model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=4),
        RoutingMetrics(),
        BalanceGuard(stop=True),
    ]
    x = 1 + rng.random(size=(8, WIDTH)).astype("float32")
    with pytest.warns(UserWarning, match="received less"):
        history = model.fit(
            x, np.zeros((8, 1)), epochs=9, verbose=0, callbacks=callbacks
        )
    assert len(history.history["moe/imbalance"]) == 2


@pytest.mark.parametrize("min_share, starving", [(0.37, []), (0.38, [2])])
def test_the_share_is_of_an_even_one(min_share, starving):
    """The least used of three experts has 1/8, which is 0.375 of 1/3."""
    inputs = keras.Input((WIDTH,))
    block = MoEBlock(3, 6, top_k=1, name="moe")
    model = keras.Model(inputs, block(inputs))
    block.router.kernel.assign(np.eye(WIDTH, 3))
    x = np.eye(WIDTH, dtype="float32")[[0, 0, 0, 0, 1, 1, 1, 2]]
    guard = BalanceGuard(min_share=min_share, patience=1)
    watch(guard, model, block, [x])
    assert guard.starving.get("moe", []) == starving


@pytest.mark.parametrize(
    "arguments, name",
    [({"min_share": 0}, "min_share"), ({"patience": 0}, "patience")],
)
def test_bad_arguments_of_the_guard(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        BalanceGuard(**arguments)


def test_bad_arguments_of_the_metrics():
    with pytest.raises(ValueError, match="`per_layer` must .*Received.*False'"):
        RoutingMetrics(per_layer="False")
