"""`FusedAdam` equals Keras's `Adam` on every backend."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops

from keras_moe import kernels
from keras_moe.training import FusedAdam, RouterLearningRate

STEPS = 5
CASES = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "weight decay, clipping": {"weight_decay": 0.1, "clipnorm": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
    "moving average": {"use_ema": True, "ema_overwrite_frequency": 2},
    "schedule": {
        "learning_rate": keras.optimizers.schedules.ExponentialDecay(
            0.1, 1, 0.5
        )
    },
    "large epsilon": {"epsilon": 0.1, "beta_1": 0.5, "beta_2": 0.7},
}


def trained(optimizer, gradients, dtype="float32"):
    """Return weights and slots after one step per gradient."""
    weights = [
        keras.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=dtype),
        keras.Variable(np.ones(4), dtype=dtype),
    ]
    optimizer.build(weights)
    for pair in gradients:
        pair = [ops.convert_to_tensor(g, dtype=dtype) for g in pair]
        optimizer.apply(pair, weights)
    variables = [*weights, *optimizer.variables]
    return [np.asarray(to_numpy(v.value), "float64") for v in variables]


@pytest.fixture
def gradients(rng):
    return [(draw(rng, 2, 3), draw(rng, 4)) for _ in range(STEPS)]


@pytest.mark.parametrize("case", CASES)
def test_weights_and_slots_are_those_of_keras(gradients, case):
    arguments = {"learning_rate": 0.1, **CASES[case]}
    found = trained(FusedAdam(**arguments), gradients)
    wanted = trained(keras.optimizers.Adam(**arguments), gradients)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_the_first_step_by_hand():
    """The first step is lr g / (|g| + epsilon / sqrt(0.001)).

    That step follows from m = 0.1 g, v = 0.001 g^2, and
    alpha = lr sqrt(0.001) / 0.1.
    """
    g = np.array([[2.0, -0.5, 1e-4]])
    weight = keras.Variable(np.zeros((1, 3)))
    optimizer = FusedAdam(0.01, epsilon=1e-5)
    optimizer.apply([ops.convert_to_tensor(g, "float32")], [weight])
    wanted = -0.01 * g / (np.abs(g) + 1e-5 / np.sqrt(0.001))
    np.testing.assert_allclose(to_numpy(weight.value), wanted, rtol=1e-4)


def test_only_torch_has_a_pass_of_its_own():
    optimizer = FusedAdam()
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer.build([weight])
    slots = [optimizer._momentums[0], optimizer._velocities[0]]
    done = kernels.adam_step(
        weight,
        ops.ones(3, "float32"),
        slots,
        lambda: ops.convert_to_tensor(0.1),
        (0.9, 0.999),
        1e-7,
    )
    assert done is (BACKEND == "torch")
    changed = to_numpy(weight.value)[0] != 1
    assert changed == done


def test_a_gradient_of_another_dtype_is_left_to_keras(gradients):
    found = trained(FusedAdam(0.1), gradients, dtype="bfloat16")
    wanted = trained(keras.optimizers.Adam(0.1), gradients, dtype="bfloat16")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.01)
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer = FusedAdam(0.1)
    optimizer.apply([ops.ones(3, "float16")], [weight])
    np.testing.assert_allclose(to_numpy(weight.value), 0.9, rtol=1e-5)


def test_a_model_trains_saves_and_loads(tmp_path, rng):
    """The slots are found inside another optimizer, too."""
    from keras_moe import MoEBlock

    model = keras.Sequential([keras.Input((8,)), MoEBlock(4, 16)])
    model.compile(RouterLearningRate(FusedAdam(0.01), 0.5), "mse")
    x = draw(rng, 32, 8)
    losses = model.fit(x, x, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer.inner_optimizer, FusedAdam)
    first, second = (m.optimizer.variables for m in (model, loaded))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
