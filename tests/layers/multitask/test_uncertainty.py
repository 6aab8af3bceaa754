"""Test learned task weights, and the model whose `fit` learns them."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy, upstream, value_and_gradients

from keras_moe import UncertaintyWeightedModel, UncertaintyWeighting, losses

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


@pytest.mark.every_backend
def test_the_sum_is_equations_7_and_10():
    """The variances are 4 and 2.

    The loss is 6 / 8 + log(4) / 2 + 3 / 2 + log(2) / 2. The slopes by log
    variance are 1/2 - loss / (2 variance) and 1/2 - loss / variance.
    """
    log_variances = np.log([4.0, 2.0]).astype("float32")
    kinds = ["regression", "classification"]

    def loss(task_losses, log_variances):
        return losses.uncertainty_weighted_loss(
            task_losses, log_variances, kinds
        )

    y, gradients = value_and_gradients(
        loss, np.array([6.0, 3.0], "float32"), log_variances
    )
    assert y == pytest.approx(6 / 8 + 3 / 2 + np.log(8) / 2, rel=1e-6)
    scale = upstream(())
    np.testing.assert_allclose(gradients[0], scale * [1 / 8, 1 / 2], rtol=1e-5)
    np.testing.assert_allclose(
        gradients[1], scale * [1 / 2 - 6 / 8, 1 / 2 - 3 / 2], rtol=1e-5
    )


def test_the_layer_holds_the_variances():
    layer = UncertaintyWeighting(2, ["regression", "classification"])
    value = layer([np.float32(6.0), np.float32(3.0)])
    assert to_numpy(value) == pytest.approx(6 / 2 + 3)  # variances of 1
    assert layer.log_variances.shape == (2,)
    again = UncertaintyWeighting.from_config(layer.get_config())
    assert again.kinds == layer.kinds
    assert UncertaintyWeighting(3).kinds == ["regression"] * 3


def data(rng, rows=256):
    """Return two regressions with noise of standard deviation 0.2 and 1.5."""
    x = draw(rng, rows, 3)
    noise = draw(rng, rows, 2) * [0.2, 1.5]
    return x, [x[:, 0] + noise[:, 0], x[:, 1:2] + noise[:, 1:]]


def weighted(**kwargs):
    inputs = keras.Input((3,))
    heads = [keras.layers.Dense(1)(inputs) for _ in range(2)]
    model = keras.Model(inputs, heads)
    return UncertaintyWeightedModel(model, ["mse", "mse"], **kwargs)


@pytest.mark.every_backend
def test_fit_learns_the_variances_of_the_noise(rng, tmp_path):
    """At the optimum, a variance is its task's mean squared error.

    That error is the variance of the data's noise, which the linear heads
    cannot explain.
    """
    model = weighted()
    x, y = data(rng)
    model.compile(keras.optimizers.Adam(0.05), metrics=[["mae"], ["mae"]])
    model.fit(x, y, batch_size=128, epochs=80, verbose=0)
    model.optimizer.learning_rate = 0.005
    model.fit(x, y, batch_size=128, epochs=40, verbose=0)
    variances = np.exp(to_numpy(model.weighting.log_variances))
    predictions = model.predict(x, verbose=0)
    errors = [
        np.mean((target.reshape(-1, 1) - prediction) ** 2)
        for target, prediction in zip(y, predictions, strict=True)
    ]
    np.testing.assert_allclose(variances, errors, rtol=0.03)
    np.testing.assert_allclose(errors, [0.04, 2.25], rtol=0.25)
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True)
    wanted = np.sum(errors / variances + np.log(variances)) / 2
    assert evaluated["loss"] == pytest.approx(wanted, rel=1e-3)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(x, y, verbose=0, return_dict=True) == evaluated
    assert again.optimizer.iterations == model.optimizer.iterations


def test_sample_weights_added_losses_and_loss_objects(rng):
    """Rows of weight 0 do not count, and a layer's losses are in the sum."""
    inputs = keras.Input((3,))
    heads = [
        keras.layers.Dense(1, activity_regularizer=keras.regularizers.L1(0.1))(
            inputs
        ),
        keras.layers.Dense(1, activation="sigmoid")(inputs),
    ]
    inner = keras.Model(inputs, heads)
    model = UncertaintyWeightedModel(
        inner,
        [keras.losses.MeanSquaredError(), "binary_crossentropy"],
        kinds=["regression", "classification"],
    )
    model.compile("sgd")
    x, (y, _) = data(rng, 8)
    y = [y[:, None], (y[:, None] > 0).astype("float32")]
    kept = np.arange(8) < 4
    weights = [kept.astype("float32")] * 2
    loss = model.evaluate(x, y, sample_weight=weights, verbose=0)
    one, p = (to_numpy(o) for o in inner(x))
    # Keras divides the sum by the number of rows, weighted or not.
    squares = np.sum((y[0] - one)[kept] ** 2) / 8
    log_p = np.log(np.where(y[1] == 1, p, 1 - p))[kept]
    added = 0.1 * np.abs(one).sum() / 8
    wanted = squares / 2 - log_p.sum() / 8 + added
    assert loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.every_backend
@pytest.mark.parametrize("outputs", ["dict", "list"])
def test_dicts_are_the_same_as_lists(outputs, rng, tmp_path):
    """Names in another order than the outputs give the loss of lists."""
    inputs = keras.Input((3,))
    heads = {
        "price": keras.layers.Dense(1, name="price")(inputs),
        "click": keras.layers.Dense(1, "sigmoid", name="click")(inputs),
    }
    inner = keras.Model(
        inputs, heads if outputs == "dict" else list(heads.values())
    )
    in_order = keras.Model(inputs, list(heads.values()))
    losses = {"click": "binary_crossentropy", "price": "mse"}
    kinds = {"price": "regression", "click": "classification"}
    named = UncertaintyWeightedModel(inner, losses, kinds)
    assert named.weighting.kinds == ["classification", "regression"]
    listed = UncertaintyWeightedModel(
        in_order, ["mse", "binary_crossentropy"], ["regression", kinds["click"]]
    )
    x, (y, _) = data(rng, 16)
    y = {"price": y[:, None], "click": (y[:, None] > 0).astype("float32")}
    weights = {name: rng.random(16).astype("float32") for name in y}
    named.weighting.log_variances.assign([0.3, -0.5])
    listed.weighting.log_variances.assign([-0.5, 0.3])
    for model in (named, listed):
        model.compile(keras.optimizers.SGD(0.1))
    wanted = listed.evaluate(
        x, [*y.values()], sample_weight=[*weights.values()], verbose=0
    )
    if outputs == "list":
        y, weights = [*y.values()], [*weights.values()]
    found = named.evaluate(x, y, sample_weight=weights, verbose=0)
    assert found == pytest.approx(wanted, rel=1e-5)
    named.fit(x, y, sample_weight=weights, verbose=0)
    named.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert list(again.get_config()["losses"]) == ["click", "price"]
    assert again.get_config()["kinds"] == kinds
    assert again.evaluate(x, y, verbose=0) == pytest.approx(
        named.evaluate(x, y, verbose=0), rel=1e-5
    )


def test_names_that_do_not_fit(rng):
    model = UncertaintyWeightedModel(
        keras.Sequential([keras.layers.Dense(1)]), {"a": "mse", "b": "mse"}
    )
    zeros = {"a": np.zeros(3), "b": np.zeros(3)}
    with pytest.raises(ValueError, match=r"`y` must be a dict of \['a', 'b'\]"):
        model.losses_of({"a": np.zeros(3)}, zeros)
    with pytest.raises(ValueError, match="`kinds` must be a dict of"):
        UncertaintyWeightedModel(model.model, {"a": "mse"}, {"b": "regression"})
    with pytest.raises(ValueError, match="`y_pred` must be a list of 2"):
        weighted().losses_of([np.zeros(3)] * 2, zeros)


def test_arguments_out_of_range(rng):
    with pytest.raises(ValueError, match="`num_tasks` must be"):
        UncertaintyWeighting(0)
    with pytest.raises(ValueError, match="`kinds` must be one of"):
        UncertaintyWeighting(2, "ranking")
    with pytest.raises(ValueError, match="`kinds` must be as many"):
        UncertaintyWeighting(2, ["regression"])
    with pytest.raises(ValueError, match="`task_losses` must be as many"):
        UncertaintyWeighting(2)([np.float32(1.0)])
    with pytest.raises(ValueError, match="`loss` must be left out"):
        weighted().compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="`y` must be a list of 2"):
        weighted().compute_loss(None, np.zeros(3), [np.zeros(3)] * 2)
