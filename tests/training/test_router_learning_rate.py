"""Test routers with their own learning rate."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops
from zoo import WIDTH, Combined

from keras_moe import Router
from keras_moe.training import (
    RouterLearningRate,
    freeze_routers,
    unfreeze_routers,
)

MAKERS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw clipped": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.PolynomialDecay(0.01, 10),
        weight_decay=0.1,
        global_clipnorm=0.1,
    ),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "two steps in one": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
}
every_optimizer = pytest.mark.parametrize("name", MAKERS)


def variables_of(rng):
    """Return four weights, of which the first and the third are a router's."""
    made = [keras.Variable(draw(rng, 3, 2), name=f"v{i}") for i in range(4)]
    made[0].of_router = made[2].of_router = True
    return made


def apply(optimizer, steps=1, scale=1.0):
    """Return the routers' weights, the others, and the routers' changes.

    The weights and gradients are the same in every call.
    """
    rng = np.random.default_rng(1)
    variables = variables_of(rng)
    start = np.stack([to_numpy(v) for v in variables])
    optimizer.build(variables)
    for _ in range(steps):
        gradients = [scale * draw(rng, 3, 2) for _ in variables]
        step(optimizer, [ops.convert_to_tensor(g) for g in gradients])
    end = np.stack([to_numpy(v) for v in variables])
    return end[::2], end[1::2], (end - start)[::2]


def step(optimizer, gradients):
    """Take one step, as `fit` does on this backend."""
    if BACKEND != "jax":
        optimizer.apply(gradients)
        return
    of_model, own = optimizer._trainable_variables, optimizer.variables
    results = optimizer.stateless_apply(
        [v.value for v in own], gradients, [v.value for v in of_model]
    )
    for variables, values in zip((of_model, own), results, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


@every_optimizer
def test_factor_1_is_the_optimizer_alone(name):
    plain = apply(MAKERS[name](), steps=4)
    scaled = apply(RouterLearningRate(MAKERS[name](), 1.0), steps=4)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(one, other)


@every_optimizer
def test_factor_0_moves_all_but_routers(name):
    plain = apply(MAKERS[name](), steps=4)
    scaled = apply(RouterLearningRate(MAKERS[name](), 0.0), steps=4)
    assert (plain[2] != 0).all()
    assert (scaled[2] == 0).all()
    np.testing.assert_array_equal(scaled[1], plain[1])


@every_optimizer
def test_a_factor_multiplies_the_learning_rate(name):
    """The whole optimizer at a quarter of its rate is the oracle."""
    whole = MAKERS[name]()
    scaled = apply(RouterLearningRate(whole, 0.25), steps=4)
    config = MAKERS[name]().get_config()
    rate = config["learning_rate"]
    if isinstance(rate, dict):
        rate["config"]["initial_learning_rate"] *= 0.25
        rate["config"]["end_learning_rate"] *= 0.25
    else:
        config["learning_rate"] = 0.25 * rate
    slow = apply(type(whole).from_config(config), steps=4)
    np.testing.assert_allclose(scaled[2], slow[2], rtol=1e-4, atol=1e-7)


def test_under_loss_scaling():
    """`mixed_float16` wraps every optimizer in this way."""
    inner = RouterLearningRate(keras.optimizers.SGD(0.1), 0.5)
    scaled = keras.optimizers.LossScaleOptimizer(inner, 8.0)
    plain = RouterLearningRate(keras.optimizers.SGD(0.1), 0.5)
    for one, other in zip(
        apply(scaled, 2, scale=8.0), apply(plain, 2), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras does not have it")
def test_stateless_apply_is_apply(rng):
    results = []
    for stateless in (False, True):
        variables = variables_of(np.random.default_rng(1))
        optimizer = RouterLearningRate(keras.optimizers.Adam(0.01), 0.5)
        optimizer.build(variables)
        gradients = [ops.ones(v.shape) for v in variables]
        if stateless:
            variables, _ = optimizer.stateless_apply(
                [v.value for v in optimizer.variables],
                gradients,
                [ops.copy(v.value) for v in variables],
            )
        else:
            optimizer.apply(gradients)
        results.append([to_numpy(v) for v in variables])
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_learning_rate_is_the_optimizers():
    optimizer = RouterLearningRate(keras.optimizers.SGD(0.5))
    optimizer.learning_rate = 0.25
    inner = optimizer.inner_optimizer.learning_rate
    assert float(to_numpy(optimizer.learning_rate)) == 0.25
    assert float(to_numpy(inner)) == 0.25


def make_model():
    inputs = keras.Input((WIDTH,))
    x = Combined(Router(3))(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def test_in_fit_and_after_saving(rng, tmp_path):
    """One compiled step takes factors 0 and 0.5, and a loaded copy resumes."""
    model = make_model()
    optimizer = RouterLearningRate(keras.optimizers.Adam(0.01), 0.0)
    model.compile(optimizer, "mse")
    x, y = draw(rng, 8, WIDTH), draw(rng, 8, 1)
    fit = {"batch_size": 4, "shuffle": False, "verbose": 0}
    kernel, dense = model.trainable_weights[:2]
    start = to_numpy(kernel), to_numpy(dense)
    model.fit(x, y, **fit)
    np.testing.assert_array_equal(to_numpy(kernel), start[0])
    assert (to_numpy(dense) != start[1]).all()
    step = model.train_function
    optimizer.factor = 0.5
    model.fit(x, y, **fit)
    assert model.train_function is step
    assert (to_numpy(kernel) != start[0]).any()
    assert int(to_numpy(optimizer.iterations)) == 4
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == optimizer.get_config()
    for one in (model, again):
        one.fit(x, y, **fit)
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-5)


def test_frozen_routers_are_not_trainable_until_unfrozen():
    model = make_model()
    weights = model.trainable_weights
    freeze_routers(model)
    assert model.trainable_weights == weights[1:]
    unfreeze_routers(model)
    assert model.trainable_weights == weights


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"inner_optimizer": "adam", "factor": -0.1}, "factor"),
        (
            {"inner_optimizer": keras.optimizers.SGD(use_ema=True)},
            "inner_optimizer",
        ),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        RouterLearningRate(**arguments)


def test_a_model_without_routers():
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="must include a router's"):
        RouterLearningRate("adam").build(model.trainable_variables)
    with pytest.raises(ValueError, match="`model` must contain a router"):
        freeze_routers(model)
