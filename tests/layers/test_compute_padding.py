"""Test padding that is computed, but excluded from losses and statistics."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy
from router_zoo import ROUTERS, D, router_inputs_of

from keras_moe import MoEBlock, Router, SwitchRouter
from keras_moe.compress import MergedRouter

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

E = 4
MASK = np.arange(8) < np.array([[5], [8], [1]])


def block_with(**options):
    router = Router(E, 2, expert_bias=True, name="router")
    block = MoEBlock(
        E,
        10,
        router=router,
        shared_expert_dim=5,
        load_balancing_weight=1.0,
        router_z_weight=1.0,
        **options,
    )
    block.build((None, None, D))
    rng = np.random.default_rng(0)
    for weight in block.trainable_weights:
        weight.assign(draw(rng, *weight.shape))
    return block


def seen_in_training(block, *args, **kwargs):
    """Return the outputs, and losses and every statistic and bias."""
    block.reset_statistics()
    block.router.expert_bias_weight.assign(np.zeros(E))
    y = to_numpy(block(*args, training=True, **kwargs))
    losses = [to_numpy(loss) for loss in block.losses]
    states = [w for w in block.non_trainable_weights if "seed" not in w.path]
    return y, losses + [to_numpy(w) for w in states]


@pytest.mark.every_backend
@pytest.mark.parametrize("kind", ["global_batch", "per_sequence"])
def test_outputs_are_those_of_all_tokens_and_losses_of_real_ones(kind, rng):
    x = draw(rng, 3, 8, D)
    block = block_with(load_balancing=kind, compute_padding=True)
    usual = block_with(load_balancing=kind)
    y, seen = seen_in_training(block, x, mask=MASK)
    everything, _ = seen_in_training(usual, x)
    padded, wanted = seen_in_training(usual, x, mask=MASK)
    np.testing.assert_array_equal(y, everything)
    assert len(seen) == len(wanted) == 7
    for mine, theirs in zip(seen, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(padded[~MASK], 0)
    assert (np.abs(y[~MASK]) > 0).all()
    usual.router.expert_bias_weight.assign(block.router.expert_bias_weight)
    _, gradients = layer_gradients(block, x, mask=MASK)
    _, wanted = layer_gradients(usual, x)
    for name, gradient in wanted.items():
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-5)


@pytest.mark.parametrize(
    "name", [n for n in ROUTERS if n not in ("ExpertChoiceRouter",)]
)
def test_each_router_counts_real_tokens_only(name, rng):
    """Its loss and its state are those of a batch with padding."""
    x = draw(rng, 3, 8, D)
    results = []
    for argument in ("mask", "loss_mask"):
        router = ROUTERS[name](seed=3)
        router.build(x.shape)
        for weight in router.trainable_weights:
            weight.assign(draw(np.random.default_rng(1), *weight.shape))
        given = router_inputs_of(router, (3, 8))
        options = {} if given is None else {"router_inputs": given}
        options[argument] = MASK
        assignment = router(x, training=True, **options)
        routed = (to_numpy(assignment.expert_index) < 6).reshape(24, -1)
        assert routed[~MASK.ravel()].any() == (argument == "loss_mask")
        states = [
            to_numpy(w)
            for w in router.non_trainable_weights
            if "seed" not in w.path
        ]
        results.append([to_numpy(assignment.router_loss), *states])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_padding_takes_part_in_capacity(rng):
    """Expert 0 keeps the first two tokens, of which one is padding."""
    block = MoEBlock(
        2,
        4,
        router=SwitchRouter(2),
        expert_capacity=2,
        compute_padding=True,
    )
    block.build((None, 2))
    block.router.kernel.assign([[1.0, -1.0], [0.0, 0.0]])
    x = np.array([[[3, 1], [1, 1], [2, 1], [-1, 1]]], "float32")
    mask = np.array([[False, True, True, True]])
    _, kept = block(x, mask=mask, training=True, return_assignment=True)
    np.testing.assert_array_equal(to_numpy(kept.expert_index), [0, 0, 2, 1])
    np.testing.assert_allclose(to_numpy(block.expert_load), [2 / 3, 1 / 3])
    np.testing.assert_allclose(to_numpy(block.fraction_dropped), [1 / 3])


def test_masks_of_keras_and_saved_models(rng, tmp_path):
    ids = np.array([[3, 4, 0, 0], [1, 2, 5, 0]])
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, D, mask_zero=True)(inputs)
    block = MoEBlock(E, 10, compute_padding=True)
    outputs = block(x)
    model = keras.Model(inputs, outputs)
    y = to_numpy(model(ids))
    assert (y[ids == 0] != 0).any(axis=-1).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again(ids)), y)


def test_a_merged_router_passes_the_mask_on(rng):
    x = draw(rng, 3, 8, D)
    router = MergedRouter(2, Router(E, expert_bias=True))
    router(x, training=True, loss_mask=np.zeros((3, 8), bool))
    moved = to_numpy(router.router.expert_bias_weight)
    np.testing.assert_array_equal(moved, np.zeros(E))


@pytest.mark.parametrize(
    "options",
    [
        {"compute_padding": "True"},
        {"compute_padding": None},
        {"compute_padding": True, "level": "example"},
    ],
    ids=str,
)
def test_bad_arguments(options):
    with pytest.raises(ValueError, match="`compute_padding` must .*Received"):
        MoEBlock(E, 5, **options)
    block = MoEBlock(E, 5, compute_padding=True)
    with pytest.raises(ValueError, match="`mask` must .*Received"):
        block(
            np.zeros((3, 2, D), "float32"), mask=np.ones(3, bool), training=True
        )
