"""Test the router that reads the previous block's logits."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy, value_and_gradients
from keras import ops
from router_zoo import arrays, logit_router

from keras_moe import (
    MoEBlock,
    PathwayRouter,
    Router,
    TransformerEncoderBlock,
)

E, D = 4, 8


def test_logits_by_hand():
    """The kernel adds twice the previous logits of experts 0 and 1, swapped."""
    router = logit_router(PathwayRouter(3, 1, normalize_weights=False))
    router.pathway_kernel.assign([[0, 2, 0], [2, 0, 0], [0, 0, 0]])
    x = np.array([[1, 0, 0], [0, 0, 1]], "float32")
    previous = np.array([[0, 1, 5], [1, 0, 7]], "float32")
    a = arrays(router(x, router_inputs=previous))
    logits = np.array([[3, 0, 0], [0, 2, 1]], "float32")
    np.testing.assert_array_equal(a.router_logits, logits)
    np.testing.assert_array_equal(a.expert_index, [0, 1])
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        a.combine_weights, [probs[0, 0], probs[1, 1]], rtol=1e-6
    )


def test_it_starts_as_a_plain_router(rng):
    plain, router = Router(E), PathwayRouter(E)
    x = draw(rng, 2, 5, D)
    one = plain(x)
    router(x, router_inputs=one.router_logits)
    router.kernel.assign(plain.kernel)
    other = router(x, router_inputs=one.router_logits)
    for mine, theirs in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_logits_of_the_inputs_shape_and_padding(rng):
    router = PathwayRouter(E, pathway_initializer="ones")
    x, previous = draw(rng, 2, 5, D), draw(rng, 2, 5, E)
    one = arrays(router(x, router_inputs=previous))
    flat = arrays(router(x, router_inputs=previous.reshape(10, E)))
    np.testing.assert_array_equal(one.router_logits, flat.router_logits)
    mask = np.ones((2, 5), "bool")
    mask[1, 3:] = False
    previous[1, 3:] = np.nan
    masked = arrays(router(x, mask=mask, router_inputs=previous))
    np.testing.assert_allclose(
        masked.router_logits[:8], one.router_logits[:8], rtol=1e-6
    )
    assert np.isfinite(masked.router_logits).all()
    assert (masked.expert_index[16:] == E).all()


@pytest.mark.parametrize(
    "shape, dtype",
    [((2, 5, E + 1), "float32"), ((9, E), "float32"), ((2, 5), "int32")],
)
def test_logits_that_do_not_fit(shape, dtype, rng):
    with pytest.raises(ValueError, match="must be the logits of a router"):
        PathwayRouter(E)(
            draw(rng, 2, 5, D), router_inputs=np.zeros(shape, dtype)
        )


def test_the_first_of_a_chain_raises_an_error(rng):
    with pytest.raises(ValueError, match="with router_inputs=logits"):
        PathwayRouter(E)(draw(rng, 5, D))


def chain():
    """Return a model of three chained blocks, and the pathway kernels."""
    inputs = keras.Input((5, D))
    blocks = [
        MoEBlock(E, 6, router=Router(E) if i == 0 else PathwayRouter(E))
        for i in range(3)
    ]
    x, a = blocks[0](inputs, return_assignment=True)
    x, a = blocks[1](x, router_inputs=a.router_logits, return_assignment=True)
    last = TransformerEncoderBlock(2, blocks[2])
    x = last(x, router_inputs=a.router_logits)
    model = keras.Model(inputs, keras.layers.Dense(1)(x[:, 0]))
    return model, [block.router.pathway_kernel for block in blocks[1:]]


@pytest.mark.one_backend
def test_a_chain_trains_saves_and_loads(rng, tmp_path):
    model, kernels = chain()
    x = draw(rng, 16, 5, D)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, x.sum((1, 2)), batch_size=16, epochs=2, verbose=0)
    for kernel in kernels:
        assert np.abs(to_numpy(kernel)).max() > 1e-4
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))


def test_mixed_precision(rng):
    """Kernels and logits stay float32 in a block of mixed precision."""
    router = PathwayRouter(E, pathway_initializer="ones")
    block = MoEBlock(E, 6, router=router, dtype="mixed_bfloat16")
    x, previous = draw(rng, 6, D), draw(rng, 6, E)
    _, a = block(x, router_inputs=previous, return_assignment=True)
    assert router.pathway_kernel.dtype == "float32"
    assert arrays(a).router_logits.dtype == np.float32
    exact = arrays(router(x, router_inputs=previous)).router_logits
    # The four logits and eight features in each sum have 8 bits of mantissa.
    np.testing.assert_allclose(arrays(a).router_logits, exact, atol=0.05)


def test_gradients_flow_back_to_the_previous_router(rng):
    """The combine weights have a gradient for the first router's kernel."""
    x = ops.convert_to_tensor(draw(rng, 6, D))
    first, second = Router(E), PathwayRouter(E, pathway_initializer="ones")
    second(x, router_inputs=first(x).router_logits)
    second.pathway_kernel.assign(draw(rng, E, E))

    def output(kernel):
        previous = ops.matmul(x, kernel)
        return second(x, router_inputs=previous).combine_weights

    _, (gradient,) = value_and_gradients(output, first.kernel.numpy())
    assert np.abs(gradient).max() > 1e-4
