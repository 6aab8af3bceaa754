"""Test forward mode and `torch.func`'s transforms of blocks and routers.

Forward and reverse derivatives have equal products: `<c, J v> = <J^T c, v>`.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from cases import cases
from router_zoo import ROUTERS, D, router_inputs_of

from keras_moe import MoEBlock, kernels

# These routers differ in what is differentiated.
SOME = ("Router sigmoid", "ExpertChoiceRouter", "AttentionRouter", "TopPRouter")
every_router = pytest.mark.parametrize("name", cases(ROUTERS, everywhere=SOME))
pytestmark = pytest.mark.filterwarnings(  # from PyTorch's own forward mode
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)
only_torch = pytest.mark.skipif(
    BACKEND != "torch", reason="torch.func is PyTorch's"
)


def function_of(router, shape):
    """Return a block as a function of tokens, and the block."""
    block = MoEBlock(router=router, intermediate_dim=4, activation="tanh")
    ids = router_inputs_of(router, shape[:-1])
    block.build(shape)

    def call(x):
        return block(x, router_inputs=ids)

    return call, block


def forward(call, x, v):
    """Return J v by the backend's own forward mode."""
    if BACKEND == "jax":
        import jax

        return jax.jvp(call, (x,), (v,))[1]
    if BACKEND == "torch":
        import torch

        return torch.func.jvp(call, (torch.tensor(x),), (torch.tensor(v),))[1]
    import tensorflow as tf

    @tf.function
    def traced(x, v):
        with tf.autodiff.ForwardAccumulator(x, v) as accumulator:
            y = call(x)
        return accumulator.jvp(y)

    return traced(tf.constant(x), tf.constant(v))


def reverse(call, x, c):
    """Return J^T c."""
    if BACKEND == "jax":
        import jax

        return jax.grad(lambda x: (call(x) * c).sum())(x)
    if BACKEND == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad((call(x) * torch.tensor(c)).sum(), x)[0]
    import tensorflow as tf

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(call(x) * c)
    return tape.gradient(total, x)


@every_router
def test_forward_mode_is_the_transpose_of_reverse_mode(name, rng):
    """JAX runs the reference, for the reason in `test_jax_transforms.py`."""
    shape = (2, 5, D)
    call, _ = function_of(ROUTERS[name](), shape)
    x, v, c = (draw(rng, *shape) for _ in range(3))
    expected = np.sum(to_numpy(reverse(call, x, c)) * v)
    with kernels.use("reference") if BACKEND == "jax" else nullcontext():
        found = np.sum(c * to_numpy(forward(call, x, v)))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's tapes")
def test_forward_over_reverse_on_tensorflow(rng):
    """A Hessian-vector product equals differences of gradients.

    The block has more experts than TensorFlow unrolls, so it runs a loop.
    """
    import tensorflow as tf

    block = MoEBlock(12, 4, activation="tanh")
    x, v = draw(rng, 6, D), draw(rng, 6, D)
    block(x)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.sin(block(x)))
        return tape.gradient(total, x)

    point = tf.constant(x)
    with tf.autodiff.ForwardAccumulator(point, tf.constant(v)) as accumulator:
        found = gradient(point)
    found, step = to_numpy(accumulator.jvp(found)), 1e-2
    more, less = (gradient(tf.constant(x + s * v)) for s in (step, -step))
    expected = (to_numpy(more) - to_numpy(less)) / (2 * step)
    np.testing.assert_allclose(found, expected, atol=3e-3)


@only_torch
@every_router
def test_torch_func_grad_and_vmap(name, rng):
    import torch

    shape = (3, 5, D)
    x = torch.tensor(draw(rng, *shape))
    call, _ = function_of(ROUTERS[name](), shape)
    found = torch.func.grad(lambda x: torch.sin(call(x)).sum())(x)
    c = np.cos(to_numpy(call(x)))
    np.testing.assert_allclose(
        to_numpy(found), to_numpy(reverse(call, to_numpy(x), c)), atol=1e-5
    )
    each, _ = function_of(ROUTERS[name](), (1, 5, D))
    found = torch.func.vmap(lambda one: each(one[None])[0])(x)
    expected = [each(one[None])[0] for one in x]
    np.testing.assert_allclose(
        to_numpy(found), np.stack([to_numpy(y) for y in expected]), atol=1e-5
    )
