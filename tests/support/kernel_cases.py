"""Provide the kernel tests with formulations, shapes, and a comparison."""

import numpy as np
from backend import BACKEND, differentiated, draw
from keras import activations, ops

from keras_moe import GatedUnit, kernels

E, D, F = 4, 6, 10
RUNS = {  # a formulation, and the argument `compiled` of value_and_gradients
    "jax": [(name, True) for name in kernels.formulations()],
    "tensorflow": [
        ("tensorflow_loop", False),
        ("tensorflow_loop", True),
        ("tensorflow_split", False),
        ("tensorflow_split", True),
        ("tensorflow_xla", "xla"),
        ("tensorflow_xla_few_rows", "xla"),
    ],
    "torch": [(name, False) for name in kernels.formulations()],
}[BACKEND]


class UnitOfAUser(GatedUnit):
    """Clips after SiLU, as Step-3.7 does, and centers the units of a row."""

    def __init__(self, limit=0.5):
        self.limit = limit

    def __call__(self, gate, up):
        gate = ops.minimum(activations.silu(gate), self.limit)
        up = up - ops.mean(up, axis=-1, keepdims=True)
        return gate * ops.clip(up, -self.limit, self.limit)


def ffn_weights(rng, gated, use_bias, num_experts=E):
    """Return random arrays for the fields of FFNWeights that are in use."""
    E = num_experts
    shapes = {"up_kernel": (E, D, F), "down_kernel": (E, F, D)}
    if use_bias:
        shapes |= {"up_bias": (E, F), "down_bias": (E, D)}
    if gated:
        shapes |= {"gate_kernel": (E, D, F)}
    if gated and use_bias:
        shapes |= {"gate_bias": (E, F)}
    return {name: draw(rng, *shape) for name, shape in shapes.items()}


def grouped_matmul(x, sizes, kernel):
    """Call the kernel with the tests' argument order; set a static shape."""
    y = kernels.grouped_matmul(x, kernel, sizes)
    return ops.reshape(y, (x.shape[0], kernel.shape[-1]))


def ffn_function(names, activation=activations.gelu, **options):
    """Return `grouped_ffn` as a function of x, sizes, and the named weights."""

    def function(x, sizes, *slices):
        named = dict(zip(names, slices, strict=True))
        weights = kernels.FFNWeights(**named)
        y = kernels.grouped_ffn(x, weights, sizes, activation, **options)
        return ops.reshape(y, (x.shape[0], weights.down_kernel.shape[-1]))

    return function


def assert_equals_reference(function, compiled, *cases, atol=1e-4):
    """Compare each case with the reference; compile once for equal shapes."""
    run = differentiated(function, compiled)
    plain = differentiated(function)
    for number, arrays in enumerate(cases):
        values, gradients = run(*arrays)
        with kernels.use("reference"):
            wanted, wanted_gradients = plain(*arrays)
        for got, want in zip(
            [values, *gradients], [wanted, *wanted_gradients], strict=True
        ):
            np.testing.assert_allclose(
                got, want, atol=atol, err_msg=f"case {number}"
            )
