"""Build the layers to time: two limits, keras_moe, and other libraries.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, P = T * K.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

import keras_moe
from benchmarks.shared import other_libraries
from benchmarks.shared.random_problem import Problem
from benchmarks.shared.timed_calls import BACKEND, KINDS, call_of
from keras_moe import kernels


class Contestant(NamedTuple):
    """A layer to time, which is one row of the tables.

    name: str. Name of the row.
    layer: Keras layer from rows to rows of width D.
    problem: `Problem`. The source of its weights and tokens.
    is_limit: bool. Whether its inputs are the P sorted rows. The layer is then
        not a MoE, and its outputs are not compared.
    kinds: tuple of str. The calls to time; see `timed_calls.KINDS`.
    compiled: bool. See `timed_calls.call_of`.
    """

    name: str
    layer: keras.layers.Layer
    problem: Problem
    is_limit: bool = False
    kinds: tuple = KINDS
    compiled: bool = False

    def call(self, kind):
        """Return the function to time; see `timed_calls.call_of`."""
        x = self.problem.pair_rows if self.is_limit else self.problem.x
        dy = np.resize(self.problem.dy, x.shape)
        return call_of(kind, self.layer, x, dy, self.compiled)


class Networks(keras.layers.Layer):
    """Computes separate SwiGLU networks on their shares of the rows.

    There is no routing. One network on all rows is `limit`. One network per
    expert, on as many rows as the expert has, is `limitE`; an expert without
    rows has no network.

    Args:
        intermediate_dim: int. F.
        counts: list of ints. Rows of each network.
    """

    def __init__(self, intermediate_dim, counts, **kwargs):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.counts = [int(count) for count in counts if count]

    def build(self, input_shape):
        D, F = input_shape[-1], self.intermediate_dim
        self.kernels = [
            [self.add_weight(s) for s in ((D, F), (D, F), (F, D))]
            for _ in self.counts
        ]

    def call(self, x, training=None):
        ends = np.cumsum(self.counts)[:-1].tolist()
        parts = ops.split(x, ends) if ends else [x]
        rows = [
            ops.matmul(ops.silu(ops.matmul(p, gate)) * ops.matmul(p, up), down)
            for p, (gate, up, down) in zip(parts, self.kernels, strict=True)
        ]
        return ops.concatenate(rows) if ends else rows[0]

    def compute_output_shape(self, input_shape):
        return input_shape


class Forced(keras.layers.Layer):
    """Runs a block with one formulation of the kernels."""

    def __init__(self, block, formulation, **kwargs):
        super().__init__(dtype=block.dtype_policy, **kwargs)
        self.block, self.formulation = block, formulation
        self.built = True

    def call(self, x, training=None):
        with kernels.use(self.formulation):
            return self.block(x, training=training)

    def compute_output_shape(self, input_shape):
        return input_shape


def limits(problem):
    """Return `limit` and `limitE`."""
    return [
        Contestant(name, Networks(problem.shape.F, counts), problem, True)
        for name, counts in (
            ("limit", [problem.chosen.size]),
            ("limitE", problem.counts),
        )
    ]


def ours(problem, forced=False):
    """Return keras_moe's block; if `forced`, also one per formulation."""
    block = moe_block(problem.shape, load_balancing_weight=0.0)
    block.build(problem.x.shape)
    block.router.kernel.assign(problem.router)
    for name in ("gate", "up", "down"):
        kernel = getattr(block.experts, f"{name}_kernel")
        kernel.assign(
            other_libraries.fitting(getattr(problem, name), kernel.shape)
        )
    found = [Contestant("keras_moe", block, problem)]
    for name in formulations(problem.shape) if forced else ():
        layer = Forced(block, name)
        found.append(Contestant(f"keras_moe, {name}", layer, problem))
    return found


def compiled(contestant):
    """Return a list of the contestant with `jit_compile=True`.

    The list is empty on JAX, which compiles every contestant.
    """
    if BACKEND == "jax":
        return []
    name = f"{contestant.name}, jit_compile=True"
    return [
        contestant._replace(name=name, compiled=True, kinds=("forward", "f+b"))
    ]


def moe_block(shape, **options):
    """Return a `MoEBlock` of SwiGLU experts without biases, not built."""
    return keras_moe.MoEBlock(
        shape.E,
        shape.F,
        top_k=shape.K,
        activation="silu",
        gated=True,
        use_bias=False,
        **options,
    )


def dense_twin(shape):
    """Return the dense network of the same active FLOPs, K * F wide."""
    return keras_moe.Expert(
        shape.K * shape.F, activation="silu", gated=True, use_bias=False
    )


def formulations(shape):
    """Return the formulations to force, except for very slow ones.

    Those of `tensorflow_xla` need `jit_compile=True`, which has its own row.
    `jax_ragged_dot` takes E times as long on CPU.
    """
    return [
        name
        for name in kernels.formulations()
        if not name.startswith("tensorflow_xla")
        and (name != "jax_ragged_dot" or shape.E <= 8)
    ]


def others(problem, only=None):
    """Return the blocks of other libraries that run on this backend.

    Args:
        problem: `Problem`. Their weights and tokens.
        only: Names to keep. `None` keeps all.
    """
    found = other_libraries.kerashub(problem) | other_libraries.einsum(problem)
    if BACKEND == "torch":
        from benchmarks.shared import other_torch_libraries

        found |= other_torch_libraries.transformers(problem)
        found |= other_torch_libraries.lucidrains(problem)
    return [
        Contestant(name, build(), problem)
        for name, build in found.items()
        if only is None or name in only
    ]
