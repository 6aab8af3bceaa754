"""Build blocks of other libraries with a problem's weights.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, C capacity.

`kerashub` and `einsum` return a dict from names to functions that build a Keras
layer from `(T, D)` to `(T, D)`. A library that is not installed is omitted. No
block gathers from a TensorFlow variable, because that would slow down every
later read of the variable.

Tutel and MegaBlocks are omitted: Tutel has no package on PyPI, and MegaBlocks
does not run without a GPU (`import megablocks` needs `megablocks_ops`, a CUDA
extension, and `stk` needs Triton).
"""

import functools
import importlib.util

import keras
import numpy as np

from benchmarks.shared.one_hot_einsum import EinsumMoE

CAPACITY_FACTOR = 1.25


def installed(package):
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def fitting(array, shape):
    """Return an array, with its last two axes swapped if `shape` needs it."""
    if array.shape == tuple(shape):
        return array
    return np.swapaxes(array, -1, -2)


class TokensOnly(keras.layers.Layer):
    """Calls a layer of `(1, T, D)` that returns its outputs first."""

    def __init__(self, block, **kwargs):
        super().__init__(dtype=block.dtype_policy, **kwargs)
        self.block = block

    def build(self, input_shape):
        if not self.block.built:
            self.block.build((1, *input_shape))

    def call(self, x, training=None):
        outputs, _ = self.block(x[None], training=training)
        return outputs[0]

    def compute_output_shape(self, input_shape):
        return input_shape


def kerashub_blocks(shape, loss_weight=0.0):
    """Return KerasHub's blocks by name, not built, or {} if it is missing."""
    if not installed("keras_hub"):
        return {}
    from keras_hub.src.models.mixtral import mixtral_decoder as mixtral
    from keras_hub.src.models.qwen3_moe import qwen3_moe_decoder as qwen3

    sizes = (shape.D, shape.F, shape.E, shape.K)
    return {
        "KerasHub Qwen3-MoE": qwen3.Qwen3SparseMoeBlock(
            *sizes,
            norm_top_k_prob=True,
            router_aux_loss_coefficient=loss_weight,
        ),
        "KerasHub Mixtral": mixtral.MixtralSparseMoeBlock(
            *sizes, router_aux_loss_coef=loss_weight
        ),
    }


def kerashub(problem):
    """Return functions that build KerasHub's Qwen3-MoE and Mixtral blocks."""
    if not installed("keras_hub"):
        return {}
    names = ("KerasHub Qwen3-MoE", "KerasHub Mixtral")
    return {n: functools.partial(_kerashub_layer, n, problem) for n in names}


def _kerashub_layer(name, problem):
    layer = TokensOnly(kerashub_blocks(problem.shape)[name])
    layer.build(problem.x.shape)
    router, *banks = layer.trainable_weights
    kernels = [problem.gate, problem.up]
    if len(banks) == 2:  # Qwen3: gate and up side by side
        kernels = [np.concatenate(kernels, axis=-1)]
    router.assign(problem.router)
    for bank, kernel in zip(banks, [*kernels, problem.down], strict=True):
        bank.assign(kernel)
    return layer


def einsum(problem):
    """Return functions that build one-hot einsum blocks of two capacities.

    The capacities are those of a capacity factor of 1.25, and the smallest one
    that drops nothing, which is the load of the fullest expert.
    """
    T, _, _, E, K, _ = problem.shape
    capacities = {
        f"capacity {CAPACITY_FACTOR}": -int(-K * T * CAPACITY_FACTOR // E),
        "capacity of the fullest": int(problem.counts.max()),
    }
    return {
        f"one-hot einsum, {name}": functools.partial(
            _einsum_layer, problem, capacity
        )
        for name, capacity in capacities.items()
    }


def _einsum_layer(problem, capacity):
    shape = problem.shape
    layer = EinsumMoE(shape.E, shape.F, shape.K, capacity)
    layer.build(problem.x.shape)
    for weight in ("router", "gate", "up", "down"):
        getattr(layer, weight).assign(getattr(problem, weight))
    return layer
