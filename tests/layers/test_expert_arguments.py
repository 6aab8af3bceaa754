"""Test the arguments of `Dense` that every form passes to its experts."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

from keras_moe import (
    CGC,
    PLE,
    Expert,
    HierarchicalMoE,
    MoEBlock,
    MultiGateMoE,
    SoftMoE,
)

E, D, F = 3, 4, 5
FORMS = {
    "Expert": lambda **kw: Expert(F, 1, **kw),
    "MoEBlock": lambda **kw: MoEBlock(E, F, shared_expert_dim=F, **kw),
    "HierarchicalMoE": lambda **kw: HierarchicalMoE(2, 4, F, **kw),
    "SoftMoE": lambda **kw: SoftMoE(E, F, **kw),
    "MultiGateMoE": lambda **kw: MultiGateMoE(E, F, 2, **kw),
    "CGC": lambda **kw: CGC(2, 1, 2, F, **kw),
    "PLE": lambda **kw: PLE(2, 1, 2, F, **kw),
}


@keras.saving.register_keras_serializable(package="tests")
class HalfLargest(keras.constraints.Constraint):
    """A constraint that scales a weight so that its largest entry is 0.5."""

    def __call__(self, w):
        return 0.5 * w / keras.ops.max(keras.ops.abs(w))


def banks_of(layer):
    parts = [layer, *layer._flatten_layers(include_self=False)]
    return [part for part in parts if isinstance(part, Expert)]


def max_norm(w, limit):
    """Apply `MaxNorm(limit)` to one Dense layer's weight, in NumPy."""
    norms = np.sqrt(np.sum(w**2, axis=0, keepdims=True))
    return w * np.clip(norms, 0, limit) / (1e-7 + norms)


def trained_bank(**kwargs):
    """Return experts' weights after one step of SGD, with the same draws."""
    keras.utils.set_random_seed(0)
    block = MoEBlock(E, F, gated=True, bias_initializer="ones", **kwargs)
    model = keras.Sequential([keras.Input((D,)), block])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = draw(np.random.default_rng(0), 16, D)
    model.fit(x, x, batch_size=16, verbose=0)
    return {w.name: to_numpy(w) for w in block.experts.weights}


def test_a_constraint_acts_on_each_expert_as_on_a_dense_layer():
    free = trained_bank()
    held = trained_bank(
        kernel_constraint=keras.constraints.MaxNorm(0.3),
        bias_constraint=HalfLargest(),
    )
    for name, weight in free.items():
        slices = [
            max_norm(w, 0.3) if "kernel" in name else 0.5 * w / np.abs(w).max()
            for w in weight
        ]
        np.testing.assert_allclose(held[name], slices, rtol=2e-4, atol=1e-6)
        assert np.abs(held[name] - weight).max() > 0.01, name


@pytest.mark.one_backend
@pytest.mark.parametrize("name", FORMS)
def test_every_form_passes_the_arguments_on(name):
    arguments = {
        "bias_initializer": keras.initializers.Constant(0.5),
        "bias_regularizer": keras.regularizers.L1(0.01),
        "kernel_constraint": keras.constraints.MaxNorm(2, axis=1),
        "bias_constraint": keras.constraints.NonNeg(),
    }
    layer = FORMS[name](**arguments)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build((None, D))
    biases = 0
    for bank in banks_of(again):
        for weight in bank.trainable_variables:
            (constraint,) = weight.constraint.get_config().values()
            of_bias = "bias" in weight.name
            wanted = "NonNeg" if of_bias else "MaxNorm"
            assert constraint["class_name"] == wanted
            assert of_bias or constraint["config"]["axis"] == 1
            if of_bias:
                np.testing.assert_array_equal(to_numpy(weight), 0.5)
                biases += 0.01 * 0.5 * np.prod(weight.shape)
    assert float(sum(map(to_numpy, again.losses))) == pytest.approx(biases)


@pytest.mark.one_backend
def test_random_biases_of_experts_differ():
    """Biases differ even if the initializer has a seed, which Keras repeats."""
    initializer = keras.initializers.RandomNormal(seed=0)
    layer = CGC(2, 1, 2, F, bias_initializer=initializer)
    layer.build((None, D))
    slices = [b for bank in banks_of(layer) for b in to_numpy(bank.up_bias)]
    assert len(np.unique(slices, axis=0)) == len(slices) == 5


@pytest.mark.one_backend
def test_a_loaded_model_is_still_constrained(tmp_path):
    block = MoEBlock(E, F, kernel_constraint="non_neg")
    model = keras.Sequential([keras.Input((D,)), block])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = draw(np.random.default_rng(0), 8, D)
    again.fit(x, x, verbose=0)
    assert (to_numpy(again.layers[-1].experts.up_kernel) >= 0).all()
