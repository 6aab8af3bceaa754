"""Train layers and models that add losses, with `set_floatx("float64")`.

On JAX, `main` also enables 64-bit types.
"""

import keras
import numpy as np
from backend import BACKEND

import keras_moe
from keras_moe import MoEBlock

D = 6


def blocks():
    """Return layers that add every kind of loss."""
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 10)
    noisy = keras_moe.NoisyTopKRouter(4, kernel_regularizer="l2")
    relu = keras_moe.ReLURouter(4, l1_start=0.1)
    biased = keras_moe.Router(4, expert_bias=True, num_null_experts=3)
    experts = [
        keras.layers.Dense(D, activity_regularizer="l2"),
        MoEBlock(2, 4),
    ]
    return {
        "losses": MoEBlock(4, 8, router_z_weight=0.1, capacity_factor=1.0),
        "schedule": MoEBlock(4, 8, load_balancing_weight=schedule),
        "noisy": MoEBlock(4, 8, router=noisy),
        "relu": MoEBlock(4, 8, router=relu),
        "bias": MoEBlock(4, 8, router=biased),
        "choice": MoEBlock(
            4,
            8,
            router=keras_moe.ExpertChoiceRouter(4, bidirectional=True),
        ),
        "experts": MoEBlock(2, experts=experts, top_k=1),
        "soft": keras_moe.SoftMoE(2, 8, kernel_regularizer="l2"),
        "models": keras_moe.MixtureOfModels(
            [keras.layers.Dense(D), keras.layers.Dense(D)], top_k=1
        ),
    }


def wrapped():
    """Return models that compute their own loss."""
    inputs = keras.Input((4, D))
    model = keras.Model(inputs, blocks()["losses"](inputs))
    return {
        "drop": keras_moe.training.RDrop(model),
        "weighted": keras_moe.UncertaintyWeightedModel(
            keras.Model(model.inputs, [*model.outputs, *model.outputs]),
            ["mse", "mse"],
        ),
    }


def fit(name, model, x, y):
    if not isinstance(model, keras_moe.UncertaintyWeightedModel):
        model.compile("sgd", "mse")
    else:
        model.compile("sgd")
        y = [y, y]
    loss = model.fit(x, y, verbose=0).history["loss"][0]
    assert np.isfinite(loss), name


def main():
    """Train a model of all layers for a step, then each wrapper."""
    floatx = keras.config.floatx()
    policy = keras.config.dtype_policy().name
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        x = np.random.default_rng(0).normal(size=(8, 4, D))
        inputs = outputs = keras.Input((4, D))
        for name, layer in blocks().items():
            outputs = layer(outputs)
            assert outputs.dtype == "float64", name
        model = keras.Model(inputs, outputs)
        fit("every layer", model, x, x)
        for kind, wrapper in wrapped().items():
            fit(kind, wrapper, x, x)
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        if BACKEND == "jax":
            jax.config.update("jax_enable_x64", False)
