"""Test banks of experts whose activation is a function of gate and up.

`zoo.py`, and the tests of compression, export, and exchange, use such an
activation in one of their layers.
"""

import json

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

import keras_moe
from keras_moe import ClippedSwiGLU, Expert, MoEBlock

E, D, F = 3, 6, 10


def by_hand(bank, e, x):
    """Return the outputs of expert e with the unit of GPT-OSS, in NumPy."""
    w = {v.name: to_numpy(v)[e].astype("float64") for v in bank.weights}
    gate = x @ w["gate_kernel"] + w["gate_bias"]
    up = x @ w["up_kernel"] + w["up_bias"]
    g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
    assert (gate > 7).any() and (np.abs(up) > 7).any()
    hidden = (u + 1) * g / (1 + np.exp(-1.702 * g))
    return hidden @ w["down_kernel"] + w["down_bias"]


@pytest.mark.fast
def test_each_group_by_hand(rng):
    """Grouped rows, one expert for inputs of rank 3, and all experts."""
    options = {
        "activation": ClippedSwiGLU(),
        "gated": True,
        "kernel_initializer": keras.initializers.RandomNormal(stddev=5),
        "bias_initializer": "random_normal",
    }
    bank, alone = Expert(F, E, **options), Expert(F, **options)
    x = draw(rng, 9, D)
    y = to_numpy(bank(x, group_sizes=np.int32([4, 0, 3])))
    np.testing.assert_allclose(
        y[:4], by_hand(bank, 0, x[:4]), rtol=1e-4, atol=1e-2
    )
    np.testing.assert_allclose(
        y[4:7], by_hand(bank, 2, x[4:7]), rtol=1e-4, atol=1e-2
    )
    np.testing.assert_array_equal(y[7:], 0)
    y = to_numpy(alone(x.reshape(3, 3, D))).reshape(9, D)
    np.testing.assert_allclose(y, by_hand(alone, 0, x), rtol=1e-4, atol=1e-2)
    y = to_numpy(bank.run_all(x[None]))
    np.testing.assert_allclose(y[1], by_hand(bank, 1, x), rtol=1e-4, atol=1e-2)


LAYERS = {
    "Expert": lambda **kw: Expert(F, **kw),
    "MoEBlock": lambda **kw: MoEBlock(E, F, shared_expert_dim=4, **kw),
    "HierarchicalMoE": lambda **kw: keras_moe.HierarchicalMoE(2, 4, F, **kw),
    "SoftMoE": lambda **kw: keras_moe.SoftMoE(E, F, **kw),
    "MultiGateMoE": lambda **kw: keras_moe.MultiGateMoE(E, F, 2, **kw),
    "MoEVisionClassifier": lambda **kw: keras_moe.models.MoEVisionClassifier(
        image_shape=(4, 4, 1),
        patch_size=2,
        num_classes=2,
        num_layers=1,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=F,
        num_experts=E,
        **kw,
    ),
}


@pytest.mark.one_backend
@pytest.mark.parametrize("name", LAYERS)
def test_configs_are_plain_and_restore_the_unit(name):
    unit = ClippedSwiGLU(10, alpha=1, up_offset=0)
    layer = LAYERS[name](activation=unit, gated=True)
    config = layer.get_config()
    numbers = {"limit": 10.0, "alpha": 1.0, "up_offset": 0.0}
    assert config["activation"]["config"] == numbers
    assert json.loads(json.dumps(config["activation"])) == config["activation"]
    again = type(layer).from_config(config)
    assert again.get_config() == config
    if name == "MoEBlock":
        assert again.experts.activation == unit
        assert again.shared_expert.activation == unit


@pytest.mark.one_backend
@pytest.mark.parametrize("name", LAYERS)
def test_a_unit_needs_a_gate(name):
    with pytest.raises(ValueError, match="`gated` must be True .*Received"):
        LAYERS[name](activation=ClippedSwiGLU())


@pytest.mark.one_backend
def test_a_given_bank_has_its_own_unit():
    bank = Expert(F, E, activation=ClippedSwiGLU(), gated=True)
    MoEBlock(experts=bank, activation=ClippedSwiGLU(7))
    with pytest.raises(ValueError, match="`activation` must be left out"):
        MoEBlock(experts=bank, activation=ClippedSwiGLU(6))


@keras.saving.register_keras_serializable(package="tests")
class Sum(keras_moe.GatedUnit):
    """A unit with an argument, of a user."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, gate, up):
        return gate + self.factor * up

    def get_config(self):
        return {"factor": self.factor}


def test_a_users_unit_is_saved(tmp_path, rng):
    """With biases of zero, the layer is linear, so it can be computed by hand.

    The dense network of equal outputs is `x (gate + 3 up) down`.
    """
    inputs = keras.Input((D,))
    bank = Expert(F, activation=Sum(3.0), gated=True)
    model = keras.Model(inputs, bank(inputs))
    x = draw(rng, 5, D)
    gate, up, down = (
        to_numpy(getattr(bank, f"{name}_kernel"))[0]
        for name in ("gate", "up", "down")
    )
    expected = x @ (gate + 3 * up) @ down
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, again):
        y = one.predict(x, verbose=0)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert type(again.layers[-1].activation) is Sum
