"""Test the values of each method of ensembles, and what `fit` learns."""

import keras
import numpy as np
import pytest
from backend import to_numpy

from keras_moe import Ensemble, MoEBlock
from keras_moe.ensemble import METHODS, CyclicCosine, StackingHead

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

# Three members' probabilities of three classes for two samples.
P = np.array(
    [
        [[0.6, 0.3, 0.1], [0.5, 0.5, 0.0]],
        [[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]],
        [[0.1, 0.5, 0.4], [0.3, 0.3, 0.4]],
    ],
    "float32",
)


@keras.saving.register_keras_serializable(package="tests")
class FixedRows(keras.layers.Layer):
    """A layer that outputs the fixed row whose number is the input."""

    def __init__(self, rows, **kwargs):
        super().__init__(**kwargs)
        self.rows = rows

    def build(self, input_shape):
        self.table = self.add_weight(name="table", shape=np.shape(self.rows))
        self.table.assign(np.asarray(self.rows, "float32"))

    def call(self, number):
        return keras.ops.take(self.table, number, axis=0)

    def compute_output_shape(self, input_shape):
        return (*input_shape, np.shape(self.rows)[-1])

    def get_config(self):
        return {**super().get_config(), "rows": np.asarray(self.rows).tolist()}


def fixed_rows(rows):
    """Return a model that outputs fixed rows."""
    number = keras.Input((), dtype="int32")
    return keras.Model(number, FixedRows(rows)(number))


def combined(rows, method, **kwargs):
    """Return the outputs for members that output `rows` `(M, N, C)`."""
    members = [fixed_rows(r) for r in rows]
    ensemble = Ensemble(members, method, **kwargs)
    return to_numpy(ensemble(np.arange(rows.shape[1], dtype="int32")))


def moe(width=8, outputs=3, activation="softmax", **kwargs):
    inputs = keras.Input((4, width))
    x = keras.layers.GlobalAveragePooling1D()(MoEBlock(4, 6, **kwargs)(inputs))
    return keras.Model(inputs, keras.layers.Dense(outputs, activation)(x))


def plain(outputs=3, **kwargs):
    return keras.Sequential(
        [
            keras.Input((4, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(outputs, "softmax", **kwargs),
        ]
    )


def task(rng, samples=48):
    x = rng.normal(size=(samples, 4, 8)).astype("float32")
    return x, (x.mean((1, 2)) > 0).astype("int32")


def compiled(ensemble, rate=0.05):
    ensemble.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return ensemble


def values(model):
    return [to_numpy(w) for w in model.weights]


def logits_of(p):
    return np.log(np.maximum(p, 1e-6)) + 3.0


MEANS = [[0.3, 0.5, 0.2], [0.3, 1 / 3, 1.1 / 3]]
# The medians (0.2, 0.5, 0.1) and (0.3, 0.3, 0.4) are divided by 0.8 and by 1.
MEDIANS = [[0.25, 0.625, 0.125], [0.3, 0.3, 0.4]]
# The first member's tie between classes 0 and 1 goes to class 0.
VOTES = [[1 / 3, 2 / 3, 0], [1 / 3, 0, 2 / 3]]
BY_HAND = {
    "mean": MEANS,
    "soft_vote": MEANS,
    "weighted": MEANS,
    "stacking": MEANS,
    "median": MEDIANS,
    "hard_vote": VOTES,
}


@pytest.mark.parametrize("method", BY_HAND)
def test_values_by_hand(method):
    """The methods that learn start with the mean."""
    np.testing.assert_allclose(combined(P, method), BY_HAND[method], atol=1e-6)


@pytest.mark.parametrize("method", sorted(set(BY_HAND) - {"mean"}))
def test_logits_are_converted_to_probabilities(method):
    output = combined(logits_of(P), method, from_logits=True)
    np.testing.assert_allclose(output, BY_HAND[method], atol=1e-5)


def test_the_mean_is_that_of_the_logits():
    output = combined(logits_of(P), "mean", from_logits=True)
    np.testing.assert_allclose(output, logits_of(P).mean(0), rtol=1e-5)


ONE = np.array([[[0.9], [0.4]], [[0.6], [0.5]], [[0.3], [0.2]]], "float32")
ONE_BY_HAND = {
    "soft_vote": [[0.6], [1.1 / 3]],
    "weighted": [[0.6], [1.1 / 3]],
    "stacking": [[0.6], [1.1 / 3]],
    "median": [[0.6], [0.4]],
    "hard_vote": [[2 / 3], [0.0]],  # 0.5 is not a vote for the second class
}


@pytest.mark.parametrize("method", ONE_BY_HAND)
def test_one_output_is_the_second_class(method):
    output = combined(ONE, method)
    np.testing.assert_allclose(output, ONE_BY_HAND[method], atol=1e-6)
    logits = np.log(ONE / (1 - ONE))
    output = combined(logits, method, from_logits=True)
    np.testing.assert_allclose(output, ONE_BY_HAND[method], atol=1e-6)


def test_regression_renormalizes_nothing():
    """The median of four values is the mean of the middle two."""
    rows = np.array([[[1.0, -5]], [[2, 7]], [[4, 0]], [[9, 1]]], "float32")
    for method, wanted in (
        ("mean", [[4.0, 0.75]]),
        ("weighted", [[4.0, 0.75]]),
        ("stacking", [[4.0, 0.75]]),
        ("median", [[3.0, 0.5]]),
    ):
        output = combined(rows, method, regression=True)
        np.testing.assert_allclose(output, wanted, atol=1e-6)


def test_medians_that_are_all_zero_are_replaced_by_the_mean():
    output = combined(np.eye(3, dtype="float32")[:, None], "median")
    np.testing.assert_allclose(output, np.full((1, 3), 1 / 3), rtol=1e-6)


def test_weights_are_convex():
    """The logits log 1, log 2, and log 5 give the weights 1/8, 2/8, and 5/8."""
    ensemble = Ensemble([fixed_rows(rows) for rows in P], "weighted")
    ensemble.combiner.logits.assign(np.log([1.0, 2.0, 5.0]))
    weights = [0.125, 0.25, 0.625]
    np.testing.assert_allclose(ensemble.member_weights(), weights, rtol=1e-6)
    np.testing.assert_allclose(
        to_numpy(ensemble(np.arange(2, dtype="int32"))),
        np.einsum("m,mnc->nc", weights, P),
        rtol=1e-5,
    )


def test_the_stacking_head_corrects_the_log_of_the_mean(rng):
    head = StackingHead(3)
    head.build((None, 9))
    kernel, bias = rng.normal(size=(9, 3)) / 5, rng.normal(size=3)
    head.correction.kernel.assign(kernel)
    head.correction.bias.assign(bias)
    p = rng.dirichlet(np.ones(3), size=(3, 5)).astype("float32")
    side_by_side = np.concatenate(list(p), -1)
    score = np.exp(np.log(side_by_side) @ kernel + bias) * p.mean(0)
    wanted = score / score.sum(-1, keepdims=True)
    np.testing.assert_allclose(to_numpy(head(side_by_side)), wanted, atol=1e-5)


@pytest.mark.every_backend
def test_weighting_prefers_the_better_member(rng):
    """One member guesses, one is right, and one is wrong."""
    truth = np.array([0, 1, 2, 1], "int32")
    right = np.eye(3)[truth] * 0.7 + 0.1
    rows = np.stack([np.full((4, 3), 1 / 3), right, 0.4 - right / 2 + 0.1])
    rows /= rows.sum(-1, keepdims=True)
    members = [fixed_rows(r) for r in rows]
    ensemble = compiled(Ensemble(members, "weighted"), 0.5)
    x = np.arange(4, dtype="int32")
    losses = ensemble.fit(x, truth, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert ensemble.member_weights()[1] > 0.8
    np.testing.assert_allclose(ensemble.member_weights().sum(), 1, rtol=1e-5)


@pytest.mark.every_backend
def test_stacking_learns_what_no_member_predicts():
    """Both members swap classes 0 and 1, so no mean is right."""
    truth = np.array([0, 1, 2, 1], "int32")
    swapped = np.eye(3)[np.array([1, 0, 2, 0])] * 0.7 + 0.1
    members = [fixed_rows(swapped), fixed_rows(swapped)]
    ensemble = compiled(Ensemble(members, "stacking"))
    x = np.arange(4, dtype="int32")
    assert ensemble.evaluate(x, truth, verbose=0)[1] == 0.25
    ensemble.fit(x, truth, epochs=30, verbose=0)
    assert ensemble.evaluate(x, truth, verbose=0)[1] == 1.0


def test_a_custom_meta_model():
    """The model picks the second member's from concatenated probabilities."""
    inputs = keras.Input((6,))
    meta = keras.Model(inputs, keras.layers.Dense(3, use_bias=False)(inputs))
    meta.layers[-1].kernel.assign(np.concatenate([np.zeros((3, 3)), np.eye(3)]))
    output = combined(P[:2], "stacking", meta_model=meta)
    np.testing.assert_allclose(output, P[1], rtol=1e-6)


@pytest.mark.parametrize("method", ["weighted", "stacking"])
def test_members_stay_unchanged(method, rng):
    """Weights and statistics do not change, and their losses are excluded."""
    x, y = task(rng)
    models = [
        moe(load_balancing_weight=100.0, kernel_regularizer="l2"),
        plain(activity_regularizer=keras.regularizers.L2(100.0)),
    ]
    ensemble = compiled(Ensemble(models, method))
    before = [w.copy() for model in models for w in values(model)]
    start = ensemble.evaluate(x, y, verbose=0)[0]
    output = to_numpy(ensemble(x))
    entropy = -np.log(output[np.arange(len(y)), y]).mean()
    np.testing.assert_allclose(start, entropy, rtol=1e-4)
    history = ensemble.fit(x, y, batch_size=48, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], entropy, rtol=1e-4)
    assert history["loss"][1] < history["loss"][0]
    now = [w for model in models for w in values(model)]
    for one, other in zip(before, now, strict=True):
        np.testing.assert_array_equal(one, other)
    assert models[0].trainable and models[0].trainable_weights


@pytest.mark.every_backend
def test_train_members_trains_them_together(rng):
    x, y = task(rng)
    models = [moe(load_balancing_weight=1.0), plain()]
    ensemble = compiled(Ensemble(models, "soft_vote", train_members=True))
    before = [values(model)[0].copy() for model in models]
    ensemble(x, training=True)
    assert len(ensemble.losses) == 1
    losses = ensemble.fit(x, y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for was, model in zip(before, models, strict=True):
        assert (values(model)[0] != was).any()


@pytest.mark.every_backend
def test_snapshots_are_the_weights_at_the_ends_of_cycles(rng):
    """The learning rate falls from 0.1 to almost zero, twice."""
    x, y = task(rng)
    ensemble = compiled(Ensemble(plain(), "snapshot", num_snapshots=2), 0.1)
    seen = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            values(ensemble.models[-1])[0].copy()
        )
    )
    history = ensemble.fit(
        x, y, batch_size=16, epochs=4, verbose=0, callbacks=[keep]
    )
    assert len(history.history["loss"]) == 4
    first, last = ensemble.models
    np.testing.assert_array_equal(values(first)[0], seen[1])
    np.testing.assert_array_equal(values(last)[0], seen[3])
    schedule = last.optimizer.get_config()["learning_rate"]["config"]
    assert schedule["cycle_steps"] == 6
    np.testing.assert_allclose(schedule["initial_learning_rate"], 0.1)
    mean = (first.predict(x, verbose=0) + last.predict(x, verbose=0)) / 2
    np.testing.assert_allclose(ensemble.predict(x, verbose=0), mean, atol=1e-6)


def test_the_cyclic_cosine_is_the_papers():
    """The schedule is eq. 2 with a cycle of four steps, from t = 0."""
    schedule = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(CyclicCosine(0.2, 4))
    )
    rates = [float(to_numpy(schedule(step))) for step in range(6)]
    half = np.sqrt(0.5)
    wanted = [0.2, 0.1 + 0.1 * half, 0.1, 0.1 - 0.1 * half, 0.2]
    np.testing.assert_allclose(rates[:5], wanted, rtol=1e-5)
    np.testing.assert_allclose(rates[5], rates[1], rtol=1e-6)


def test_dicts_of_inputs_may_differ(rng):
    """Each member takes the keys of its own inputs, in `fit_members`, too."""
    a, b = (keras.Input((4,), name=name) for name in "ab")
    both = keras.layers.Concatenate()([a, b])
    softmax = {"activation": "softmax"}
    models = [
        keras.Model({"a": a}, keras.layers.Dense(2, **softmax)(a)),
        keras.Model({"a": a, "b": b}, keras.layers.Dense(2, **softmax)(both)),
    ]
    ensemble = compiled(Ensemble(models, "soft_vote"))
    x = {k: rng.normal(size=(6, 4)).astype("float32") for k in "ab"}
    y = np.arange(6) % 2
    validation = {"validation_data": (x, y), "sample_weight": np.ones(6)}
    histories = ensemble.fit_members(
        x, y, bootstrap=True, seed=3, verbose=0, **validation
    )
    assert [set(h.history) for h in histories] == [
        {"loss", "accuracy", "val_loss", "val_accuracy"}
    ] * 2
    wanted = models[0].predict({"a": x["a"]}, verbose=0)
    wanted = (wanted + models[1].predict(x, verbose=0)) / 2
    output = ensemble.predict(x, verbose=0)
    np.testing.assert_allclose(output, wanted, atol=1e-6)


def test_lists_of_inputs(rng):
    def two():
        inputs = [keras.Input((4,)), keras.Input((3,))]
        x = keras.layers.Concatenate()(inputs)
        return keras.Model(inputs, keras.layers.Dense(2)(x))

    ensemble = Ensemble([two(), two()])
    x = [rng.normal(size=(5, n)).astype("float32") for n in (4, 3)]
    assert ensemble.predict(x, verbose=0).shape == (5, 2)
    assert ensemble.predict_members(x, verbose=0).shape == (2, 5, 2)


def test_fit_members_draws_by_its_seed(rng):
    """Equal seeds give equal training; bootstraps differ between members."""
    x, y = task(rng)
    start = [w.copy() for w in values(plain())]
    results = []
    for _ in range(2):
        models = [plain(), plain()]
        for model in models:
            model.set_weights(start)
        ensemble = compiled(Ensemble(models, "soft_vote"))
        ensemble.fit_members(x, y, bootstrap=True, seed=1, verbose=0)
        results.append([values(model)[0] for model in models])
    np.testing.assert_array_equal(results[0], results[1])
    assert (results[0][0] != results[0][1]).any()


def test_half_precision_members_are_combined_in_float32(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    ensemble = Ensemble([moe(), plain()], "weighted")
    output = ensemble(task(rng)[0])
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
    assert ensemble.combiner.logits.dtype == "float32"
    np.testing.assert_allclose(to_numpy(output).sum(-1), 1, atol=0.02)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"snapshot"}))
def test_tokens_have_classes_too(method, rng):
    """The outputs are (B, S, C), with S known only at run time."""

    def tagger():
        inputs = keras.Input((None, 8))
        return keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))

    models = [tagger(), tagger(), tagger()]
    ensemble = Ensemble(models, method)
    x = rng.normal(size=(2, 5, 8)).astype("float32")
    assert ensemble.output_shape == (None, None, 3)
    output = to_numpy(ensemble(x))
    alone = to_numpy(Ensemble(models, method)(x[:, 2:3]))
    np.testing.assert_allclose(output[:, 2:3], alone, atol=1e-6)
    np.testing.assert_allclose(output.sum(-1), 1, atol=1e-5)
