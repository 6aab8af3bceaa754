"""What the kernels' tests share: formulations, shapes, the comparison."""

import numpy as np
from backend import BACKEND, draw, value_and_gradients
from keras import activations, ops

from keras_moe import kernels

E, D, F = 4, 6, 10
RUNS = {  # a formulation, and `compiled` of value_and_gradients
    "jax": [(name, True) for name in kernels.formulations()],
    "tensorflow": [
        ("tensorflow_loop", False),
        ("tensorflow_loop", True),
        ("tensorflow_split", False),
        ("tensorflow_split", True),
        ("tensorflow_xla", "xla"),
    ],
    "torch": [(name, False) for name in kernels.formulations()],
}[BACKEND]


def ffn_weights(rng, gated, use_bias, num_experts=E):
    """Arrays in the order of FFNWeights' fields; absent ones left out."""
    E = num_experts
    shapes = {"up_kernel": (E, D, F), "down_kernel": (E, F, D)}
    if use_bias:
        shapes |= {"up_bias": (E, F), "down_bias": (E, D)}
    if gated:
        shapes |= {"gate_kernel": (E, D, F)}
    if gated and use_bias:
        shapes |= {"gate_bias": (E, F)}
    return {name: draw(rng, *shape) for name, shape in shapes.items()}


def ffn_function(names, sizes, activation=activations.gelu, **options):
    """`grouped_ffn` as a function of arrays, the weights in order of names."""

    def function(x, *slices):
        named = dict(zip(names, slices, strict=True))
        return kernels.grouped_ffn(
            x,
            kernels.FFNWeights(**named),
            ops.convert_to_tensor(sizes),
            activation,
            **options,
        )

    return function


def assert_equals_reference(function, arrays, compiled, atol=1e-4):
    values, gradients = value_and_gradients(
        function, *arrays, compiled=compiled
    )
    with kernels.use("reference"):
        wanted, wanted_gradients = value_and_gradients(function, *arrays)
    np.testing.assert_allclose(values, wanted, atol=atol)
    for got, want in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=atol)
