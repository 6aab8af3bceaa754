"""Test blocks that share experts or a router, in memory."""

import copy
import gc

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from sharing_models import (
    SHAPES,
    D,
    E,
    F,
    chain,
    experts_of,
    three_blocks,
    two_blocks,
    warned,
)

from keras_moe import (
    Expert,
    HierarchicalMoE,
    HierarchicalRouter,
    MoEBlock,
    Router,
)


def test_shared_experts_are_one_set_of_variables():
    first, second = two_blocks()
    model = chain([first, second])
    assert second.experts is first.experts
    # Two routers have a kernel each, one bank four weights, and the head two.
    assert len(model.trainable_variables) == 2 + 4 + 2
    first, *others = three_blocks()
    model = chain([first, *others])
    assert len(model.trainable_variables) == 2 + 2 + 2


def test_a_step_is_that_of_the_sum_of_both_gradients(rng):
    """With plain SGD, a shared bank moves by the sum of two banks' moves.

    The two banks are separate, and start with the weights of the shared one.
    """
    x, y = draw(rng, 8, 5, D), draw(rng, 8, 1)
    shared = chain(two_blocks())
    apart = chain([MoEBlock(E, F, name="first"), MoEBlock(E, F, name="second")])
    for name in ("first", "second"):
        mine, theirs = shared.get_layer(name), apart.get_layer(name)
        theirs.router.set_weights(mine.router.get_weights())
        theirs.experts.set_weights(mine.experts.get_weights())
    apart.layers[-1].set_weights(shared.layers[-1].get_weights())
    start = shared.get_layer("first").experts.get_weights()
    for model in (shared, apart):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=8, verbose=0)
    (bank, same), (one, other) = experts_of(shared), experts_of(apart)
    assert bank is same
    weights = (bank.get_weights(), one.get_weights(), other.get_weights())
    for was, now, a, b in zip(start, *weights, strict=True):
        assert np.abs(now - was).max() > 1e-6
        np.testing.assert_allclose(now - was, (a - was) + (b - was), atol=2e-6)


def test_a_regularizer_counts_once():
    bank = Expert(F, E, kernel_regularizer="l2", kernel_initializer="ones")
    blocks = [
        MoEBlock(E, experts=bank, name=f"block_{i}", load_balancing_weight=0)
        for i in range(2)
    ]
    losses = [float(to_numpy(loss)) for loss in chain(blocks).losses]
    # Keras multiplies two kernels of E * D * F ones each by 0.01.
    assert sum(losses) == pytest.approx(2 * 0.01 * E * D * F)


@pytest.mark.parametrize(
    "router, message",
    [
        (lambda: Router(E), "`router` must be None or a HierarchicalRouter"),
        (lambda: HierarchicalRouter(E, 1), "the layer's `num_groups`"),
        (
            lambda: HierarchicalRouter(E, 2, top_k_groups=2),
            "`top_k` must be left out if `router` is given",
        ),
        (
            lambda: HierarchicalRouter(6, 2, 4, 2),
            "`router` must have the block's",
        ),
    ],
)
def test_routers_that_do_not_fit_a_hierarchical_block(router, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalMoE(2, E, F, top_k=4, top_k_groups=2, router=router())


COPIES = {  # ways to copy a model without a file
    "clone_model": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "a deep copy of the config": lambda model: keras.Model.from_config(
        copy.deepcopy(model.get_config())
    ),
    "JSON": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_copy_without_a_file_shares_nothing_and_warns(name, way):
    """A copy warns once for the parts that the same layers shared.

    Three blocks with a common bank and router warn once. The transformers warn
    twice, because two of them share a block, and the other two share experts.
    """
    model = chain(SHAPES[name][0]())
    for _ in range(2):
        again, texts = warned(lambda: COPIES[way](model))
        assert len(texts) == (2 if name == "transformers" else 1)
        if name == "three blocks":
            assert "'expert" in texts[0] and "'router" in texts[0]
        banks = experts_of(again)
        assert len({id(bank) for bank in banks}) == len(banks)
        assert [bank.num_experts for bank in banks] == [E] * len(banks)
    _, texts = warned(lambda: COPIES[way](again))
    assert not texts  # the copies share nothing


@pytest.mark.parametrize("collect", [False, True])
def test_blocks_from_one_dict_of_arguments(collect):
    """Blocks that share a router are built from configs without a warning.

    There is no warning whether or not the other blocks still exist.
    """
    arguments = {"num_experts": E, "router": Router(E), "experts": Expert(F, E)}
    configs, others = [], []
    for _ in range(3):
        block = MoEBlock(**arguments)
        block.itself = block  # only the garbage collector can free it
        others.append(block)
    if collect:
        others.clear()
        gc.collect()
    for _ in range(2):
        again, texts = warned(lambda: MoEBlock.from_config(block.get_config()))
        assert not texts and again.router is not block.router
        assert again.get_config() == block.get_config()
        configs.append(again.get_config())
    renamed, texts = warned(
        lambda: MoEBlock.from_config({**configs[0], "name": "another"})
    )
    assert not texts and renamed.experts is not again.experts


def test_a_part_of_one_block_is_not_marked():
    """A block that shares nothing has no `shared_object_id` in its config."""
    block = MoEBlock(E, experts=Expert(F, E))
    assert "shared_object_id" not in block.get_config()["experts"]
    again = MoEBlock.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    plain = MoEBlock(E, F)
    assert "experts" not in plain.get_config()
    MoEBlock(E, experts=plain.experts)


def test_a_width_that_does_not_fit_is_an_error():
    first, second = two_blocks()
    first(np.zeros((2, D), "float32"))
    with pytest.raises(ValueError, match="must have 8 as last dimension"):
        second(np.zeros((2, D + 1), "float32"))


def test_experts_are_shared_or_given():
    first = MoEBlock(E, F)
    assert MoEBlock(E, experts=first.experts).experts is first.experts
    with pytest.raises(ValueError, match="`share_experts_with` must be"):
        MoEBlock(E, experts=first.experts, share_experts_with=first)
    with pytest.raises(ValueError, match="`share_experts_with` must be"):
        MoEBlock(E, share_experts_with=Router(E))
