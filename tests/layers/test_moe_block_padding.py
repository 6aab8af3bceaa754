"""Padding tokens are excluded from outputs, losses, load, and capacity."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy

from keras_moe import HashRouter, MoEBlock, TransformerEncoderBlock

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def padded_block():
    return MoEBlock(
        4,
        10,
        capacity_factor=0.5,
        shared_expert_dim=5,
        load_balancing_weight=1.0,
        router_z_weight=0.1,
    )


@pytest.mark.parametrize("priority", ["position", "score"])
@pytest.mark.parametrize("content", [100.0, np.nan])
def test_the_content_of_padding_changes_nothing(rng, priority, content):
    x = draw(rng, 3, 8, 6)
    mask = np.arange(8) < np.array([[5], [8], [1]])
    poisoned = np.where(mask[..., None], x, content).astype("float32")
    results = []
    for inputs in (x, poisoned):
        keras.utils.set_random_seed(1)
        block = padded_block()
        block.priority = priority
        y = to_numpy(block(inputs, mask=mask, training=True))
        losses = [to_numpy(loss) for loss in block.losses]
        load = to_numpy(block.expert_load)
        dropped = to_numpy(block.fraction_dropped)
        _, gradients = layer_gradients(block, inputs, training=True, mask=mask)
        results.append([y, *losses, load, dropped, *gradients.values()])
    assert len(results[0][1:3]) == 2 and results[0][4].sum() > 0
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(results[1][0][~mask], 0)


def test_padding_behaves_as_if_it_were_not_there(rng):
    """Values, losses, and load of a padded batch are those of its tokens."""
    x = draw(rng, 3, 8, 6)
    mask = np.arange(8) < np.array([[5], [8], [1]])
    block = MoEBlock(4, 10, load_balancing_weight=1.0, router_z_weight=1.0)
    padded = to_numpy(block(x, mask=mask, training=True))[mask]
    losses = [to_numpy(loss) for loss in block.losses]
    load = to_numpy(block.expert_load)
    block.reset_statistics()
    alone = to_numpy(block(x[mask], training=True))
    np.testing.assert_allclose(padded, alone, atol=1e-6)
    np.testing.assert_allclose(
        losses, [to_numpy(loss) for loss in block.losses], rtol=1e-5
    )
    np.testing.assert_allclose(load, to_numpy(block.expert_load), rtol=1e-6)


@pytest.mark.every_backend
def test_keras_masks_are_applied_and_passed_on(rng):
    ids = np.array([[3, 4, 0, 0], [1, 2, 5, 0]])
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, 6, mask_zero=True)(inputs)
    block = MoEBlock(4, 10)
    model = keras.Model(inputs, [block(x), keras.layers.LSTM(3)(block(x))])
    y, state = model(ids)
    assert (to_numpy(y)[ids == 0] == 0).all()
    assert (to_numpy(y)[ids != 0] != 0).any(axis=-1).all()
    shorter = to_numpy(model(ids[:, :3])[1])
    np.testing.assert_allclose(to_numpy(state), shorter, atol=1e-6)


@pytest.mark.parametrize("given", ["router_inputs", "replay"])
@pytest.mark.parametrize("kind", ["router", "block", "transformer"])
def test_a_keras_mask_is_found_beside_a_second_tensor(kind, given):
    """With a second tensor, Keras passes the inputs' mask by another name."""
    router = HashRouter(4)
    layer = router
    if kind != "router":
        layer = MoEBlock(4, 6, router=router)
    if kind == "transformer":
        layer = TransformerEncoderBlock(2, layer)
    options = {} if kind == "router" else {"return_assignment": True}
    ids = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(9, 4, mask_zero=True)(ids)
    first = layer(x, router_inputs=ids, **options)
    if given == "replay":
        recorded = first if kind == "router" else first[1]
        recorded = recorded._replace(expert_index=0 * recorded.expert_index)
        first = layer(x, router_inputs=ids, replay=recorded, **options)
    assignment = first if kind == "router" else first[1]
    model = keras.Model(ids, assignment.expert_index)
    index = to_numpy(model(np.array([[5, 0, 7], [0, 1, 0]])))
    np.testing.assert_array_equal(index == 4, [0, 1, 0, 1, 0, 1])
