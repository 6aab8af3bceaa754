"""The grouped kernels on JAX: one loop over blocks of rows.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

XLA wants static shapes and the rows an expert receives are data. Each group
is cut into blocks of B rows, B fixed by the shapes; one `fori_loop` over a
number of blocks that is data slices a block's rows and its expert's weights,
and writes at the block's offset. The part of a last block that reaches into
the next group is masked, and the next block overwrites it. Work follows
`P + E * B` rows at most, never `E * P`; the gradient is a loop of the same
shape, because XLA cannot differentiate a loop of unknown length. Each loop is
jitted here, so that calls outside `jit` compile it once and not every time.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.blocks import block_rows
from keras_moe.kernels.reference import FFNWeights, ffn, linear
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    return _grouped_matmul(x, kernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    return _grouped_ffn(activation, x, weights, group_sizes)


# --- one grouped matmul -----------------------------------------------------


@jax.custom_vjp
@jax.jit
def _grouped_matmul(x, kernel, group_sizes):
    def block(rows, matrix):
        return (rows[0] @ matrix,), None

    outputs, _ = _map_blocks(
        block, (x,), kernel, group_sizes, (kernel.shape[-1],)
    )
    return outputs[0]


@jax.jit
def _grouped_matmul_forward(x, kernel, group_sizes):
    return _grouped_matmul(x, kernel, group_sizes), (x, kernel, group_sizes)


@jax.jit
def _grouped_matmul_backward(residuals, dy):
    x, kernel, group_sizes = residuals

    def block(rows, matrix):
        x_rows, dy_rows = rows
        return (dy_rows @ matrix.T,), _outer(x_rows, dy_rows)

    (dx,), dkernel = _map_blocks(
        block, (x, dy), kernel, group_sizes, (x.shape[-1],), summed=True
    )
    return dx, dkernel, None


_grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)


# --- the whole expert -------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _grouped_ffn(activation, x, weights, group_sizes):
    def block(rows, w):
        return (ffn(rows[0], w, activation),), None

    width = weights.down_kernel.shape[-1]
    outputs, _ = _map_blocks(block, (x,), weights, group_sizes, (width,))
    return outputs[0]


@functools.partial(jax.jit, static_argnums=0)
def _grouped_ffn_forward(activation, x, weights, group_sizes):
    def block(rows, w):
        before = _before_activation(rows[0], w)
        hidden = _hidden(activation, *before)
        return (linear(hidden, w.down_kernel, w.down_bias), *before), None

    inner = weights.up_kernel.shape[-1]
    kept = 1 if weights.gate_kernel is None else 2
    widths = (weights.down_kernel.shape[-1], *[inner] * kept)
    outputs, _ = _map_blocks(block, (x,), weights, group_sizes, widths)
    y, *before = outputs
    return y, (x, weights, group_sizes, before)


@functools.partial(jax.jit, static_argnums=0)
def _grouped_ffn_backward(activation, residuals, dy):
    x, weights, group_sizes, before = residuals

    def block(rows, w):
        dy_rows, x_rows, *before_rows = rows
        hidden, vjp = jax.vjp(
            functools.partial(_hidden, activation), *before_rows
        )
        d_up, *d_gate = vjp(dy_rows @ w.down_kernel.T)
        dx = d_up @ w.up_kernel.T
        gate_kernel = gate_bias = None
        if d_gate:
            dx = dx + d_gate[0] @ w.gate_kernel.T
            gate_kernel = _outer(x_rows, d_gate[0])
            gate_bias = _sum_rows(d_gate[0], w.gate_bias)
        return (dx,), FFNWeights(
            up_kernel=_outer(x_rows, d_up),
            down_kernel=_outer(hidden, dy_rows),
            up_bias=_sum_rows(d_up, w.up_bias),
            down_bias=_sum_rows(dy_rows, w.down_bias),
            gate_kernel=gate_kernel,
            gate_bias=gate_bias,
        )

    (dx,), dweights = _map_blocks(
        block,
        (dy, x, *before),
        weights,
        group_sizes,
        (x.shape[-1],),
        summed=True,
    )
    return dx, dweights, None


_grouped_ffn.defvjp(_grouped_ffn_forward, _grouped_ffn_backward)


def _before_activation(rows, w):
    """Returns `(up,)`, or `(up, gate)` of a gated expert, each (B, F)."""
    up = linear(rows, w.up_kernel, w.up_bias)
    if w.gate_kernel is None:
        return (up,)
    return up, linear(rows, w.gate_kernel, w.gate_bias)


def _hidden(activation, up, gate=None):
    return activation(up) if gate is None else activation(gate) * up


# --- the loop ---------------------------------------------------------------


def _map_blocks(block, rows, weights, group_sizes, widths, summed=False):
    """Runs `block(rows, weights of the expert)` over every group's blocks.

    Args:
        block: function of a tuple of (B, .) row blocks, zero outside the
            group, and one expert's weights; returns a tuple of (B, width)
            outputs and, where `summed`, a pytree shaped like the weights.
        rows: tuple of (P, .) arrays.
        weights: pytree of (E, ...) arrays.
        group_sizes: (E,) int32.
        widths: the widths of the outputs.
        summed: whether the second result is summed over the blocks.

    Returns:
        The outputs, each (P, width), zero behind the last group, and the sums
        (None unless `summed`), each (E, ...).
    """
    num_rows, dtype = rows[0].shape[0], rows[0].dtype
    size = block_rows(num_rows, group_sizes.shape[0])
    starts, ends, experts, count = _blocks(group_sizes, num_rows, size)
    rows = [jnp.pad(r, ((0, size), (0, 0))) for r in rows]
    outputs = tuple(jnp.zeros((num_rows + size, w), dtype) for w in widths)
    sums = jax.tree.map(_accumulator, weights) if summed else None

    def step(i, carry):
        outputs, sums = carry
        start, expert = starts[i], experts[i]
        mine = (start + jnp.arange(size) < ends[i])[:, None]
        block_rows = [
            jnp.where(mine, lax.dynamic_slice_in_dim(r, start, size), 0)
            for r in rows
        ]
        own = jax.tree.map(lambda w: _index(w, expert), weights)
        values, parts = block(block_rows, own)
        outputs = tuple(
            lax.dynamic_update_slice_in_dim(
                o, jnp.where(mine, v, 0).astype(dtype), start, 0
            )
            for o, v in zip(outputs, values, strict=True)
        )
        if summed:
            sums = jax.tree.map(
                lambda s, p: lax.dynamic_update_index_in_dim(
                    s, _index(s, expert) + p.astype(s.dtype), expert, 0
                ),
                sums,
                parts,
            )
        return outputs, sums

    outputs, sums = lax.fori_loop(0, count, step, (outputs, sums))
    if summed:
        sums = jax.tree.map(lambda s, w: s.astype(w.dtype), sums, weights)
    return tuple(o[:num_rows] for o in outputs), sums


def _blocks(group_sizes, num_rows, size):
    """Each block's first row, its group's end, its expert; and how many."""
    limit = -(-num_rows // size) + group_sizes.shape[0]
    ends = jnp.cumsum(group_sizes)
    last = jnp.cumsum(-(-group_sizes // size))
    block = jnp.arange(limit)
    expert = jnp.searchsorted(last, block, side="right")
    expert = jnp.minimum(expert, group_sizes.shape[0] - 1)
    before = last[expert] - -(-group_sizes[expert] // size)
    start = ends[expert] - group_sizes[expert] + (block - before) * size
    return start, ends[expert], expert, last[-1]


def _accumulator(weight):
    """Zeros to sum a gradient in; half-precision ones are summed in float32."""
    return jnp.zeros(weight.shape, jnp.promote_types(weight.dtype, "float32"))


def _index(array, i):
    return lax.dynamic_index_in_dim(array, i, keepdims=False)


def _outer(a, b):
    """`a^T b`, summed over the rows in float32 or better: `(., .)`."""
    wide = jnp.promote_types(a.dtype, "float32")
    return jnp.matmul(a.T, b, preferred_element_type=wide)


def _sum_rows(rows, like):
    return None if like is None else jnp.sum(rows, axis=0, dtype="float32")
