"""Test a load-balancing weight that changes while the model trains."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

from keras_moe import MoEBlock
from keras_moe.training import BalanceWarmUp

WIDTH = 6


def loss_of(block, x):
    block(x, training=True)
    return float(to_numpy(block.losses[0]))


@pytest.mark.parametrize(
    "schedule, weights",
    [
        (BalanceWarmUp(0.4, steps=4), [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]),
        (BalanceWarmUp(0.1, steps=2, start=0.5), [0.5, 0.3, 0.1, 0.1]),
        (
            keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.2]),
            [0.5, 0.5, 0.2],
        ),
    ],
    ids=["up", "down", "of Keras"],
)
def test_the_weight_at_each_training_call(rng, schedule, weights):
    """The loss is the weight times the loss of an equal block of weight 1."""
    x = draw(rng, 9, WIDTH)
    block = MoEBlock(3, 4, load_balancing_weight=schedule)
    one = MoEBlock(3, 4, load_balancing_weight=1.0)
    one(x), block(x)
    one.router.set_weights(block.router.get_weights())
    whole = loss_of(one, x)
    for weight in weights:
        block(x)  # evaluation does not count
        assert loss_of(block, x) == pytest.approx(weight * whole, rel=1e-5)


def test_a_compiled_step_follows_the_schedule_and_saves_its_step(rng, tmp_path):
    """At a learning rate of 0, only the weight changes the loss.

    With two steps per epoch, the weights are 0 and .1, and then .2 and .3.
    """
    x = draw(rng, 8, WIDTH)
    one = MoEBlock(3, 4, load_balancing_weight=1.0)
    block = MoEBlock(3, 4, load_balancing_weight=BalanceWarmUp(0.4, 4))
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, block(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    one.build((None, WIDTH))
    one.router.set_weights(block.router.get_weights())
    first, second = loss_of(one, x[:4]), loss_of(one, x[4:])
    error = ((to_numpy(block(x)) - x) ** 2).mean()

    fit = model.fit(x, x, batch_size=4, shuffle=False, verbose=0, epochs=2)
    extra = np.array(fit.history["loss"]) - error
    wanted = [0.1 * second / 2, (0.2 * first + 0.3 * second) / 2]
    np.testing.assert_allclose(extra, wanted, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    steps = again.layers[1].scheduled_weight.steps
    assert to_numpy(steps).tolist() == [4]


def test_only_a_schedule_adds_a_weight():
    plain, scheduled = (
        MoEBlock(3, 4),
        MoEBlock(3, 4, load_balancing_weight=BalanceWarmUp()),
    )
    for block in (plain, scheduled):
        block.build((None, WIDTH))
    assert len(scheduled.weights) == len(plain.weights) + 1
    steps = scheduled.scheduled_weight.steps
    assert tuple(steps.shape) == (1,) and not steps.trainable


def test_config_round_trip():
    block = MoEBlock(3, 4, load_balancing_weight=BalanceWarmUp(0.1, 7, 0.2))
    again = MoEBlock.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    schedule = again.load_balancing_weight
    assert (schedule.weight, schedule.steps, schedule.start) == (0.1, 7, 0.2)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"weight": -1}, "weight"),
        ({"steps": 0}, "steps"),
        ({"start": -1}, "st"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}.* must .*Received"):
        BalanceWarmUp(**arguments)
