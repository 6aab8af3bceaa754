"""Compare the activations of PyTorch's kernels with autograd."""

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("PyTorch's kernels", allow_module_level=True)

from keras_moe.kernels.torch import activation as activation_module  # noqa: E402

ACTIVATIONS = ["silu", "gelu", "relu", "tanh", lambda x: x]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_and_gradients_are_those_of_autograd(rng, activation, gated):
    """`tanh` has no PyTorch twin, and the identity allocates no output."""
    activation = keras.activations.get(activation)
    before = [
        torch.tensor(rng.normal(size=(5, 4)), requires_grad=True)
        for _ in range(1 + gated)
    ]
    d_hidden = torch.tensor(rng.normal(size=(5, 4)))
    up, *gate = before
    expected = activation(gate[0]) * up if gated else activation(up)
    expected_gradients = torch.autograd.grad(expected, before, d_hidden)
    values = [b.detach() for b in before]
    copies = [v.clone() for v in values]
    with torch.no_grad():
        hidden = activation_module.activated(activation, *values)
        np.testing.assert_allclose(hidden, expected.detach(), rtol=1e-12)
        hidden, vjp = activation_module.activated_and_vjp(activation, values)
        np.testing.assert_allclose(hidden, expected.detach(), rtol=1e-12)
        gradients = vjp(d_hidden.clone())
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-10, atol=1e-12)
    for value, copy in zip(values, copies, strict=True):
        assert torch.equal(value, copy)  # the inputs are not overwritten


def test_the_usual_activations_have_twins():
    for name in ("silu", "swish", "gelu", "relu"):
        activation = keras.activations.get(name)
        assert activation_module.light_activation(activation) is not activation
    tanh = keras.activations.tanh
    assert activation_module.light_activation(tanh) is tanh
