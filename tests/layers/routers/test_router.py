"""Test the router as a layer: precision, noise, masks, and bad inputs."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy
from keras import ops

from keras_moe import Router, routing

pytestmark = pytest.mark.fast


def test_it_is_a_linear_map_and_top_k(rng):
    x = draw(rng, 7, 6)
    router = Router(5, top_k=2, use_bias=True, bias_initializer="ones")
    assignment = router(x)
    logits = x @ to_numpy(router.kernel) + 1
    np.testing.assert_allclose(
        to_numpy(assignment.router_logits), logits, rtol=1e-5, atol=1e-6
    )
    best = np.argsort(-logits, axis=1)[:, :2].reshape(-1)
    np.testing.assert_array_equal(to_numpy(assignment.expert_index), best)
    assert router.kernel.shape == (6, 5)
    assert router.bias.shape == (5,)
    assert router.pairs_per_token == 2


def test_inputs_of_any_rank_are_flattened(rng):
    x = draw(rng, 2, 3, 4, 6)
    router = Router(5)
    deep, flat = router(x), router(x.reshape(24, 6))
    for a, b in zip(deep, flat, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("as_global", [True, False])
def test_float32_under_every_policy(rng, policy, as_global):
    """The outputs are bitwise equal to those of a float32 router."""
    x = draw(rng, 9, 6)
    plain = Router(5)
    plain(x)
    if as_global:
        keras.config.set_dtype_policy(policy)
        router = Router(5)
    else:
        router = Router(5, dtype=policy)
    router(x)
    router.set_weights(plain.get_weights())
    for a, b in zip(router(x), plain(x), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    for field in ("combine_weights", "router_probs", "router_logits"):
        dtype = getattr(router(x), field).dtype
        assert keras.backend.standardize_dtype(dtype) == "float32"


def test_jitter_acts_in_training_only(rng):
    x = draw(rng, 50, 6)
    router = Router(5, jitter=0.1, seed=1)
    logits = to_numpy(router(x).router_logits)
    still = to_numpy(router(x, training=False).router_logits)
    noisy = to_numpy(router(x, training=True).router_logits)
    np.testing.assert_array_equal(logits, still)
    assert np.abs(noisy - logits).max() > 0
    bound = np.abs(x) @ np.abs(to_numpy(router.kernel)) * 0.1
    assert (np.abs(noisy - logits) <= bound + 1e-6).all()


def test_padding_is_sent_nowhere_and_its_content_does_not_matter(rng):
    x, mask = draw(rng, 2, 4, 6), np.array([[1, 1, 0, 0], [1, 1, 1, 0]], bool)
    poisoned = np.where(mask[..., None], x, np.nan).astype("float32")
    router = Router(5)
    a, b = router(x, mask=mask), router(poisoned, mask=mask)
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    nowhere = to_numpy(a.expert_index).reshape(2, 4, 2) == 5
    np.testing.assert_array_equal(nowhere.all(-1), ~mask)


@pytest.mark.parametrize("scoring", routing.SCORINGS)
@pytest.mark.parametrize("normalize_weights", [True, False])
def test_the_weights_train_the_router(rng, scoring, normalize_weights):
    """The gradient of the combine weights equals finite differences."""
    x = draw(rng, 4, 6)
    router = Router(5, 2, scoring, normalize_weights)

    class Weights(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.router = router

        def call(self, x, training=None):
            return self.router(x).combine_weights

    layer = Weights()
    _, gradients = layer_gradients(layer, x)
    (kernel_gradient,) = [g for n, g in gradients.items() if n != "inputs"]
    from backend import upstream

    kernel = to_numpy(router.kernel).copy()

    def total(step):
        moved = kernel.copy()
        moved[2, 3] += step
        router.set_weights([moved, *router.get_weights()[1:]])
        return (to_numpy(layer(x)) * upstream((8,))).sum(dtype="float64")

    slope = (total(1e-2) - total(-1e-2)) / 2e-2
    assert kernel_gradient[2, 3] == pytest.approx(slope, abs=2e-3)


def test_an_assignment_in_a_functional_model(rng):
    x = draw(rng, 3, 4, 6)
    router = Router(5, top_k=3)
    inputs = keras.Input((4, 6))
    assignment = router(inputs)
    assert assignment.router_probs.shape == (None, 5)
    assert assignment.expert_index.shape == (None,)
    fixed = router(keras.Input((4, 6), batch_size=3))
    assert fixed.expert_index.shape == (36,)
    shapes = router.compute_output_shape((3, 4, 6))
    assert shapes.expert_index == (36,)
    assert shapes.router_probs == (12, 5)
    model = keras.Model(inputs, assignment.router_probs)
    np.testing.assert_allclose(
        to_numpy(model(x)), to_numpy(router(x).router_probs), rtol=1e-6
    )


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": 2.0}, "num_experts"),
        ({"num_experts": 4, "top_k": 5}, "top_k"),
        ({"num_experts": 4, "top_k": 0}, "top_k"),
        ({"num_experts": 4, "top_k": True}, "top_k"),
        ({"num_experts": 4, "scoring": "tanh"}, "scoring"),
        ({"num_experts": 4, "jitter": -0.1}, "jitter"),
        ({"num_experts": 4, "jitter": 1.0}, "jitter"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received: .*{name}"):
        Router(**arguments)


@pytest.mark.parametrize(
    "inputs, options, name",
    [
        (np.zeros(6, "float32"), {}, "inputs"),
        (np.zeros((3, 6), "int32"), {}, "inputs"),
        (np.zeros((3, 7), "float32"), {}, "inputs"),
        (np.zeros((3, 6), "float32"), {"mask": np.ones((2,), bool)}, "mask"),
        (np.zeros((3, 6), "float32"), {"mask": np.ones((3, 1), bool)}, "mask"),
    ],
    ids=["rank", "integers", "width", "mask length", "mask rank"],
)
def test_bad_inputs(inputs, options, name):
    router = Router(4)
    if inputs.ndim > 1:
        router.build((None, 6))
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        router(ops.convert_to_tensor(inputs), **options)


def test_an_unknown_width():
    with pytest.raises(ValueError, match="known last dimension"):
        Router(4)(keras.Input((5, None)))
