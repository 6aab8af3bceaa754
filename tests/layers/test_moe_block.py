"""Test the outputs of `MoEBlock`."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy

from keras_moe import Expert, MoEBlock

pytestmark = pytest.mark.fast


def expert_outputs(block, x):
    """Return every dense `Expert`'s outputs of every row, `(E, rows, D)`."""
    outputs = []
    for e in range(block.num_experts):
        own = Expert(
            block.experts.intermediate_dim,
            activation=block.experts.activation,
            gated=block.experts.gated,
            use_bias=block.experts.use_bias,
        )
        own.build((None, x.shape[-1]))
        for mine, stacked in zip(
            own.trainable_variables,
            block.experts.trainable_variables,
            strict=True,
        ):
            mine.assign(to_numpy(stacked)[e : e + 1])
        outputs.append(to_numpy(own(x)))
    return np.stack(outputs)


@pytest.mark.one_backend
def test_one_expert_is_the_dense_network_with_the_same_weights(rng):
    x = draw(rng, 4, 5, 6)
    block = MoEBlock(1, 10, top_k=1, activation="gelu", gated=True)
    y, gradients = layer_gradients(block, x)
    dense = Expert(10, activation="gelu", gated=True)
    dense.build((None, 6))
    dense.set_weights(block.experts.get_weights())
    wanted, wanted_gradients = layer_gradients(dense, x)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    for name, gradient in wanted_gradients.items():
        got = next(g for n, g in gradients.items() if n.endswith(name))
        np.testing.assert_allclose(got, gradient, atol=1e-4)


@pytest.mark.parametrize("gated", [False, True])
def test_all_experts_are_the_explicit_mixture(rng, gated):
    """If K = E, the outputs of all experts are summed by softmax weights."""
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, top_k=4, gated=gated)
    y = to_numpy(block(x))
    logits = x @ to_numpy(block.router.kernel)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixture = np.einsum("te,etd->td", weights, expert_outputs(block, x))
    np.testing.assert_allclose(y, mixture, atol=1e-5)


def test_top_1_weighs_by_the_probability(rng):
    """Fedus et al. 2021, eq. 2: y = p_i(x) E_i(x), so the router learns."""
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, top_k=1)
    y, assignment = block(x, return_assignment=True)
    probs = to_numpy(assignment.router_probs)
    best = probs.argmax(-1)
    chosen = expert_outputs(block, x)[best, np.arange(7)]
    wanted = probs.max(-1, keepdims=True) * chosen
    np.testing.assert_allclose(to_numpy(y), wanted, atol=1e-5)
    _, gradients = layer_gradients(block, x)
    assert np.abs(gradients["router/kernel"]).max() > 1e-3


def test_shared_expert_gets_every_token(rng):
    x = draw(rng, 7, 6)
    block = MoEBlock(4, 10, shared_expert_dim=3, gated=True, activation="silu")
    both = to_numpy(block(x))
    shared = to_numpy(block.shared_expert(x))
    assert block.shared_expert.gated
    assert block.shared_expert.up_kernel.shape == (1, 6, 3)
    routed = MoEBlock(4, 10, gated=True, activation="silu")
    routed(x)
    routed.router.set_weights(block.router.get_weights())
    routed.experts.set_weights(block.experts.get_weights())
    np.testing.assert_allclose(both, to_numpy(routed(x)) + shared, atol=1e-5)


@pytest.mark.parametrize("seed", [None, 3])
def test_shared_expert_does_not_start_as_a_routed_one(seed):
    initializer = keras.initializers.GlorotUniform(seed=seed)
    block = MoEBlock(
        2, 10, shared_expert_dim=10, kernel_initializer=initializer
    )
    block.build((None, 6))
    shared = to_numpy(block.shared_expert.up_kernel)
    assert (to_numpy(block.experts.up_kernel) != shared).all()


@pytest.mark.one_backend
def test_dropless_outputs_do_not_depend_on_the_other_tokens(rng):
    x = draw(rng, 40, 6)
    block = MoEBlock(8, 10, top_k=2)
    y = to_numpy(block(x))
    order = rng.permutation(40)
    np.testing.assert_allclose(to_numpy(block(x[order])), y[order], atol=1e-6)
    np.testing.assert_allclose(to_numpy(block(x[:9])), y[:9], atol=1e-6)
    crowd = np.concatenate([x[:1], np.repeat(x[1:2], 30, axis=0)])
    np.testing.assert_allclose(to_numpy(block(crowd))[0], y[0], atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 2, 6)])
def test_inputs_of_any_rank(rng, shape):
    x = draw(rng, 4, *shape)
    block = MoEBlock(3, 10)
    y = to_numpy(block(x))
    assert y.shape == x.shape
    flat = to_numpy(block(x.reshape(-1, 6)))
    np.testing.assert_allclose(y.reshape(-1, 6), flat, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 6), (0, 3, 6), (2, 0, 6)])
def test_no_tokens(shape, training):
    block = MoEBlock(
        3, 10, capacity_factor=1.0, shared_expert_dim=4, router_z_weight=0.1
    )
    y = block(np.zeros(shape, "float32"), training=training)
    assert tuple(y.shape) == shape
    assert all(float(to_numpy(loss)) == 0 for loss in block.losses)
    np.testing.assert_array_equal(to_numpy(block.expert_load), np.zeros(3))


def test_nan_in_one_token_reaches_no_other(rng):
    x = draw(rng, 20, 6)
    block = MoEBlock(4, 10, shared_expert_dim=5)
    y = to_numpy(block(x))
    poisoned = x.copy()
    poisoned[7] = np.nan
    got = to_numpy(block(poisoned))
    assert np.isnan(got[7]).any()
    np.testing.assert_allclose(
        np.delete(got, 7, axis=0), np.delete(y, 7, axis=0), atol=1e-6
    )
