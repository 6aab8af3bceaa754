"""Check programs of symbolic shapes on JAX, by `jax.export`.

Each program is exported once, with an unknown batch size and an unknown
length, and compared at two sizes with the original function.
"""

import pytest
from backend import BACKEND, draw

if BACKEND != "jax":
    pytest.skip("symbolic shapes are JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import export
from kernel_cases import E, ffn_weights
from own_layers import EVERY_LAYER, Residual, expert_choice
from router_zoo import ROUTERS, D, router_inputs_of
from zoo import WIDTH

import keras_moe
from keras_moe import ClippedSwiGLU, kernels, losses, routing

SIZES = [(2, 5), (3, 33)]


def assert_exports(function, *cases, atol=1e-5):
    """Export a function of arrays with unknown first axes, and compare it."""
    scope = export.SymbolicScope()
    unknown = export.symbolic_shape("b, s", scope=scope)

    def spec(like):
        known = like.shape[2:]
        return jax.ShapeDtypeStruct((*unknown, *known), like.dtype)

    program = export.export(jax.jit(function))(*map(spec, cases[0]))
    program = export.deserialize(program.serialize())
    for arrays in cases:
        got, want = program.call(*arrays), jax.jit(function)(*arrays)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want
        )


CHEAP = ["MoEBlock full", "any experts", "experts choose twice"]


@pytest.mark.parametrize(
    "name",
    [
        name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow)
        for name in EVERY_LAYER
    ],
)
def test_layers(name, rng):
    layer = EVERY_LAYER[name]()
    layer(keras.Input((None, WIDTH)))
    assert_exports(
        lambda x: layer(x, training=False),
        *[(draw(rng, *size, WIDTH),) for size in SIZES],
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "HashRouter"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ROUTERS
    ],
)
def test_routers(name, rng):
    block = keras_moe.MoEBlock(6, 12, router=ROUTERS[name]())
    block.build((None, None, D))

    def inputs(size):
        ids = router_inputs_of(block.router, size)
        x = draw(rng, *size, D)
        return (x,) if ids is None else (x, ids)

    assert_exports(
        lambda x, ids=None: block(x, router_inputs=ids, training=False),
        *map(inputs, SIZES),
    )


def test_gradients(rng):
    """The gradients of inputs and weights include the losses of training."""
    block = keras_moe.MoEBlock(
        4, 8, capacity_factor=1.0, load_balancing="per_sequence"
    )
    block.build((None, None, WIDTH))
    fixed = [v.value for v in block.non_trainable_variables]

    def total(x, weights):
        y, _, losses = block.stateless_call(
            weights, fixed, x, training=True, return_losses=True
        )
        return jnp.sum(jnp.square(y)) + sum(losses)

    weights = [v.value for v in block.trainable_variables]
    gradients = jax.grad(total, argnums=(0, 1))
    assert_exports(
        lambda x: gradients(x, weights),
        *[(draw(rng, *size, WIDTH),) for size in SIZES],
        atol=1e-4,
    )


@pytest.mark.parametrize("formulation", kernels.formulations())
def test_formulations(formulation, rng):
    """One group is empty, and another takes several blocks.

    The groups have 0, 3, 290, and 5 rows, and two rows are in no group.
    """
    named = ffn_weights(rng, gated=True, use_bias=True)
    weights = kernels.FFNWeights(**{k: jnp.array(v) for k, v in named.items()})
    width = weights.up_kernel.shape[1]

    def run(x, sizes):
        return kernels.grouped_ffn(
            x.reshape(-1, width), weights, sizes[:, 0], ClippedSwiGLU()
        )

    sizes = np.array([0, 3, 290, 5], "int32")[:, None]
    few = np.array([1, 0, 2, 0], "int32")[:, None]
    assert sizes.shape == (E, 1)
    program = _exported(run, formulation, width)
    many_rows, few_rows = draw(rng, 30, 10, width), draw(rng, 1, 5, width)
    for x, n in ((many_rows, sizes), (few_rows, few)):
        with kernels.use("reference"):
            want = run(jnp.array(x), jnp.array(n))
        np.testing.assert_allclose(program.call(x, n), want, atol=1e-4)


def _exported(run, formulation, width):
    unknown = export.symbolic_shape("b, s")
    with kernels.use(formulation):
        return export.export(jax.jit(run))(
            jax.ShapeDtypeStruct((*unknown, width), "float32"),
            jax.ShapeDtypeStruct((E, 1), "int32"),
        )


def test_symbolic_choice_breaks_ties_by_column():
    """Ties go to the lower column, and NaN and -0.0 count as zero."""
    scores = np.array(
        [[[1, 3, 3, 2], [0.0, -0.0, -1, 0], [np.nan, -1, 0, 2]]], "float32"
    )
    unknown = export.symbolic_shape("b, s")
    program = export.export(
        jax.jit(lambda x: kernels.top_k_index(x.reshape(-1, 4), 3))
    )(jax.ShapeDtypeStruct((*unknown, 4), "float32"))
    np.testing.assert_array_equal(
        program.call(scores), [[1, 2, 3], [0, 1, 3], [3, 0, 2]]
    )


def test_losses_of_token_masks(rng):
    """`load_balancing_loss` finds K pairs per token in two unknown sizes."""

    def loss(probs, mask):
        logits = probs.reshape(-1, 4)
        chosen = routing.top_k_assignment(logits, 2)
        return losses.load_balancing_loss(
            chosen.router_probs, chosen.expert_index, mask.reshape(-1)
        )

    assert_exports(
        loss,
        *[(draw(rng, *size, 4), rng.random(size) < 0.7) for size in SIZES],
    )


@pytest.fixture
def distribution():
    """Set Keras's distribution to one device during a test."""
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=jax.devices("cpu")[:1])
    )
    yield
    keras.distribution.set_distribution(None)


@pytest.mark.parametrize("router", [None, expert_choice(4)])
def test_own_layer_in_a_distribution(router, distribution):
    """The exchange needs a number of rows, but a shape needs no exchange."""
    block = keras_moe.MoEBlock(4, 8, capacity_factor=1.0, router=router)
    outputs = Residual(block)(keras.Input((None, WIDTH)), training=True)
    assert outputs.shape == (None, None, WIDTH)
