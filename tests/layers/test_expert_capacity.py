"""Test the absolute capacity of experts in each sequence.

`test_parity_transformers.py` compares values and gradients with Switch
Transformers.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, predicted, to_numpy
from compress_cases import block_model

from keras_moe import (
    Expert,
    ExpertChoiceRouter,
    MoEBlock,
    Router,
    TransformerDecoderBlock,
    routing,
)
from keras_moe.compress import prune_experts

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

E, D = 3, 6


def kept_by_hand(index, probs, per_token, length, capacity, priority):
    """Return which pairs a loop over sequences, experts, and pairs keeps."""
    kept = index >= E  # no expert
    for first in range(0, len(index), length * per_token):
        for e in range(E):
            pairs = [
                p
                for p in range(first, first + length * per_token)
                if index[p] == e
            ]
            if priority == "score":
                pairs.sort(key=lambda p: (-probs[p // per_token, index[p]], p))
            kept[pairs[:capacity]] = True
    return kept


@pytest.mark.every_backend
@pytest.mark.parametrize("priority", routing.PRIORITIES)
def test_each_sequence_has_a_capacity_of_its_own(priority, rng):
    router = Router(E, 2, num_null_experts=1)
    block = MoEBlock(E, 5, expert_capacity=2, priority=priority, router=router)
    x = draw(rng, 4, 7, D)
    mask = np.ones((4, 7), bool)
    mask[1, 2:5] = False
    x[~mask] = np.nan
    chosen = router(x.reshape(28, D), mask=mask.reshape(28))
    index, probs = to_numpy(chosen.expert_index), to_numpy(chosen.router_probs)
    wanted = kept_by_hand(index, probs, 2, 7, 2, priority)
    assert 0.2 < wanted.mean() < 0.9
    for training in (False, True):
        y, kept = block(x, mask=mask, training=training, return_assignment=True)
        np.testing.assert_array_equal(
            to_numpy(kept.expert_index), np.where(wanted, index, E)
        )
    assert np.isfinite(to_numpy(y)).all()
    dropped = (~wanted & (index < E)).sum() / (index < E).sum()
    np.testing.assert_allclose(to_numpy(block.fraction_dropped), [dropped])
    # A sequence alone gives the same; as one list, all share the capacity.
    alone = block(x[2:3], mask=mask[2:3])
    np.testing.assert_allclose(to_numpy(alone)[0], to_numpy(y)[2], atol=1e-6)
    _, kept = block(x.reshape(28, D), return_assignment=True, mask=mask.ravel())
    counts = np.bincount(to_numpy(kept.expert_index), minlength=E)
    assert (counts[:E] <= 2).all()


@pytest.mark.every_backend
def test_sizes_that_are_unknown_when_a_model_is_traced(rng):
    """Batch and length are symbolic in the model, and then take any value."""
    inputs = keras.Input((None, D))
    block = MoEBlock(E, 5, top_k=1, expert_capacity=1)
    model = keras.Model(inputs, block(keras.layers.Identity()(inputs)))
    x = draw(rng, 3, 4, D)
    whole = model.predict(x, verbose=0)
    np.testing.assert_allclose(whole, to_numpy(block(x)), atol=1e-6)
    np.testing.assert_allclose(
        model.predict(x[:1, :2], verbose=0),
        to_numpy(block(x[:1, :2])),
        atol=1e-6,
    )
    computed = (np.abs(whole) > 0).any(-1).sum(axis=1)
    assert (computed <= E).all()
    assert to_numpy(block(x[:0])).shape == (0, 4, D)
    if BACKEND != "torch":
        run = predicted(block, compiled=True)
        np.testing.assert_allclose(run(x), whole, atol=1e-5)


def test_layers_of_any_kind_and_replay(rng):
    dense = [keras.layers.Dense(D) for _ in range(E)]
    block = MoEBlock(experts=dense, top_k=2, expert_capacity=2)
    x = draw(rng, 3, 5, D)
    y, kept = block(x, return_assignment=True)
    again, same = block(x, replay=kept, return_assignment=True)
    np.testing.assert_allclose(to_numpy(again), to_numpy(y), atol=1e-6)
    np.testing.assert_array_equal(
        to_numpy(same.expert_index), to_numpy(kept.expert_index)
    )


def test_pruning_measures_without_the_capacity(rng):
    block = MoEBlock(4, 5, 1, expert_capacity=1)
    model = block_model(block, length=6)
    x = draw(rng, 20, 6, model.inputs[0].shape[-1])
    limited = prune_experts(model, 2, data=x)
    assert block.expert_capacity == limited.layers[-1].expert_capacity == 1
    block.expert_capacity = None
    free = prune_experts(model, 2, data=x)
    for one, other in zip(limited.weights, free.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.parametrize(
    "options",
    [
        {"expert_capacity": 0},
        {"expert_capacity": 1.5},
        {"expert_capacity": True},
        {"expert_capacity": 2, "capacity_factor": 1.0},
        {"expert_capacity": 2, "eval_capacity_factor": 1.0},
        {"expert_capacity": 2, "level": "example"},
        {
            "expert_capacity": 2,
            "router": ExpertChoiceRouter(E, bidirectional=True),
        },
    ],
    ids=str,
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="`expert_capacity` must .*Received"):
        MoEBlock(E, 5, **options)


def test_a_causal_block_and_its_cache():
    """Other tokens decide which of a sequence's pairs are dropped."""
    moe = MoEBlock(E, experts=Expert(5, E), expert_capacity=2)
    block = TransformerDecoderBlock(3, moe)
    x = np.zeros((1, 3, D), "float32")
    block(x)
    with pytest.raises(ValueError, match="`cache` must .*expert_capacity=2"):
        block(x, cache=block.empty_cache(1, 3), index=0)
    moe.priority = "score"
    with pytest.raises(ValueError, match="`moe` must not .*Received"):
        TransformerDecoderBlock(3, moe)
