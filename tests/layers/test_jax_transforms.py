"""Test blocks inside JAX's transforms."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw
from router_zoo import ROUTERS, D, E, router_cases, router_inputs_of

from keras_moe import MoEBlock, kernels

if BACKEND != "jax":
    pytest.skip("JAX's transforms", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec


def function_of(block, x, ids=None):
    """Build a block, and return it as a function with its weights."""
    block(x, router_inputs=ids)
    weights = [v.value for v in block.trainable_variables]
    state = [v.value for v in block.non_trainable_variables]

    def run(weights, x):
        return block.stateless_call(weights, state, x, router_inputs=ids)[0]

    return run, weights


def loss_of(run):
    return lambda weights, x: jnp.sum(jnp.sin(run(weights, x)))


def nested(run):
    """Return a block in a branch of a loop under `jax.checkpoint`."""

    def body(weights, x, _):
        return jax.lax.cond(x[0, 0] < 99, run, lambda w, x: x, weights, x), None

    @jax.checkpoint
    def function(weights, x):
        steps = jnp.arange(1)
        return jax.lax.scan(lambda x, s: body(weights, x, s), x, steps)[0]

    return function


@pytest.mark.parametrize("name", router_cases())
def test_every_router_has_gradients_in_checkpoint_scan_and_cond(rng, name):
    """Tracing alone shows what the gradient rules capture."""
    router = ROUTERS[name]()
    x = draw(rng, 5, D)
    ids = router_inputs_of(router, (5,))
    block = MoEBlock(E, 4, router=router)
    run, weights = function_of(block, x, ids)
    jax.make_jaxpr(jax.grad(loss_of(nested(run)), (0, 1)))(weights, x)


@pytest.mark.parametrize("name", router_cases())
def test_every_router_has_gradients_in_shard_map(rng, name):
    """Tracing checks which values vary between devices, even on one device."""
    router = ROUTERS[name]()
    x = draw(rng, 5, D)
    ids = router_inputs_of(router, (5,))
    run, weights = function_of(MoEBlock(E, 4, router=router), x, ids)
    whole, sharded = PartitionSpec(), PartitionSpec("data")
    mapped = jax.shard_map(
        jax.grad(loss_of(run), (0, 1)),
        mesh=Mesh(np.array(jax.devices()), ("data",)),
        in_specs=(whole, sharded),
        out_specs=(whole, sharded),
    )
    jax.make_jaxpr(mapped)(weights, x)


@pytest.mark.parametrize(
    "transform",
    [jax.checkpoint, keras.remat, nested],
    ids=["checkpoint", "remat", "nested"],
)
def test_gradients_inside_a_transform_are_those_outside(rng, transform):
    x = draw(rng, 8, D)
    run, weights = function_of(MoEBlock(E, 4), x)
    expected = jax.jit(jax.grad(loss_of(run), (0, 1)))(weights, x)
    found = jax.jit(jax.grad(loss_of(transform(run)), (0, 1)))(weights, x)
    for got, wanted in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_block_is_an_expert_of_another(rng):
    inputs = keras.Input((D,))
    inner = MoEBlock(2, 4, name="inner")
    experts = [inner, keras.layers.Dense(D)]
    outputs = MoEBlock(2, top_k=1, experts=experts)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [np.array(w) for w in inner.get_weights()]
    model.fit(draw(rng, 16, D), draw(rng, 16, D), verbose=0)
    after = inner.experts.up_kernel
    assert not any(
        w.shape == after.shape and np.allclose(w, after) for w in before
    )


@pytest.mark.parametrize(
    "differentiated",
    [
        lambda f: lambda x: jax.jvp(f, (x,), (x,)),
        lambda f: lambda x: jax.linearize(f, x)[1](x),
        jax.jacfwd,
        jax.hessian,
        lambda f: jax.jit(jax.jacfwd(f)),
        lambda f: jax.jit(lambda x: jax.jvp(jax.jit(f), (x,), (x,))),
    ],
    ids=["jvp", "linearize", "jacfwd", "hessian", "jit jacfwd", "jit jvp jit"],
)
@pytest.mark.parametrize("formulation", kernels.formulations())
def test_forward_mode_names_the_alternative(rng, formulation, differentiated):
    x = draw(rng, 3, D)
    run, weights = function_of(MoEBlock(E, 4), x)
    with kernels.use(formulation):
        function = differentiated(lambda x: jnp.sum(run(weights, x)))
        with pytest.raises(NotImplementedError, match="use..reference"):
            function(x)


def test_the_reference_has_forward_mode(rng):
    """The tangent is the gradient times the direction."""
    x, direction = draw(rng, 3, D), draw(rng, 3, D)
    run, weights = function_of(MoEBlock(E, 4), x)
    loss = loss_of(run)
    gradient = jax.jit(jax.grad(loss, 1))(weights, x)
    with kernels.use("reference"):
        _, tangent = jax.jit(
            lambda x, d: jax.jvp(lambda x: loss(weights, x), (x,), (d,))
        )(x, direction)
    expected = np.sum(np.array(gradient) * direction)
    np.testing.assert_allclose(tangent, expected, rtol=1e-4)


def test_vmap_is_a_block_on_each(rng):
    x = draw(rng, 3, 4, D)
    run, weights = function_of(MoEBlock(E, 4), x[0])
    found = jax.jit(jax.vmap(run, (None, 0)))(weights, x)
    expected = [run(weights, each) for each in x]
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
