"""Blocks that share experts or a router, in memory and in a saved model."""

import copy
import gc
import warnings

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from elsewhere import run_on

from keras_moe import (
    CGC,
    Expert,
    HierarchicalMoE,
    HierarchicalRouter,
    MixtureOfModels,
    MoEBlock,
    MultiGateMoE,
    Router,
    SoftMoE,
    TransformerEncoderBlock,
)

E, D, F = 4, 8, 6


def two_blocks():
    """The second takes the first's own experts."""
    first = MoEBlock(E, F, name="first")
    return first, MoEBlock(E, share_experts_with=first, name="second")


def three_blocks():
    """One bank and one router that were given to all."""
    bank, router = Expert(F, E, use_bias=False), Router(E, use_bias=True)
    return [
        MoEBlock(E, experts=bank, router=router, name=f"block_{i}")
        for i in range(3)
    ]


def transformers():
    """Two that share a whole block, beside two that share experts alone."""
    block = MoEBlock(E, F, name="shared_block")
    first, second = two_blocks()
    parts = (block, first, block, second)
    return [
        TransformerEncoderBlock(2, moe, name=f"transformer_{i}")
        for i, moe in enumerate(parts)
    ]


def lent_by_groups():
    """A block lends the router that it built by itself to two others."""
    groups = HierarchicalMoE(2, E, F, top_k_groups=2, jitter=0.1, name="first")
    other = HierarchicalMoE(
        2, E, F, top_k_groups=2, jitter=0.1, router=groups.router, name="second"
    )
    return [groups, other, MoEBlock(E, F, router=groups.router, name="third")]


def chain(layers):
    inputs = keras.Input((5, D))
    x = inputs
    for layer in layers:
        x = x + layer(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x[:, 0]))


SHAPES = {  # and the number of the shared bank's weights
    "two blocks": (two_blocks, 4),
    "three blocks": (three_blocks, 2),
    "transformers": (transformers, 4),
}
every_sharing = pytest.mark.parametrize("name", SHAPES)


def experts_of(model):
    """The banks of a model's blocks, in order."""
    layers = [layer for layer in model.layers if layer.name != "dense"]
    blocks = [getattr(layer, "moe", layer) for layer in layers]
    return [block.experts for block in blocks if isinstance(block, MoEBlock)]


def with_other_weights(model, rng):
    """Moves every weight away from its start."""
    for weight in model.trainable_variables:
        weight.assign_add(0.1 * draw(rng, *weight.shape))
    return model


def test_shared_experts_are_one_set_of_variables():
    first, second = two_blocks()
    model = chain([first, second])
    assert second.experts is first.experts
    # Two routers of a kernel, one bank of four weights, a head of two.
    assert len(model.trainable_variables) == 2 + 4 + 2
    first, *others = three_blocks()
    model = chain([first, *others])
    assert len(model.trainable_variables) == 2 + 2 + 2


def test_a_step_is_that_of_the_sum_of_both_gradients(rng):
    """Against two banks of equal weights: the shared bank moves by the sum
    of what they move by, for plain SGD."""
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
    # Two kernels of ones, E * D * F numbers each, by Keras's 0.01.
    assert sum(losses) == pytest.approx(2 * 0.01 * E * D * F)


@every_sharing
def test_loaded_here_it_is_still_shared(name, rng, tmp_path):
    """And once more, when the loaded model is saved."""
    make, number = SHAPES[name]
    model = with_other_weights(chain(make()), rng)
    x = draw(rng, 6, 5, D)
    for _ in range(2):
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert len(again.variables) == len(model.variables)
        np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
        banks = {id(bank): bank for bank in experts_of(again)}
        assert len(banks) == (2 if name == "transformers" else 1)
        assert {len(bank.weights) for bank in banks.values()} == {number}
        model = with_other_weights(again, rng)


def test_the_router_of_a_hierarchical_block_may_be_lent(rng, tmp_path):
    """Loaded twice, it is still one; a copy by configs is one per block."""
    model = with_other_weights(chain(lent_by_groups()), rng)
    x = draw(rng, 6, 5, D)
    for _ in range(2):
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
        blocks = [again.get_layer(n) for n in ("first", "second", "third")]
        assert len({id(block.router) for block in blocks}) == 1
        assert blocks[0].router.top_k_groups == 2
        assert len(again.variables) == len(model.variables)
        model = with_other_weights(again, rng)
    copied, texts = warned(lambda: keras.models.clone_model(model))
    routers = {id(copied.get_layer(b.name).router) for b in blocks}
    assert len(routers) == 3 and len(texts) == 1


LENDERS = {  # layers that build their banks themselves, and one of the banks
    "soft": (lambda: SoftMoE(E, F), lambda layer: layer.experts),
    "gates": (lambda: MultiGateMoE(E, F, 2), lambda layer: layer.experts),
    "tasks": (lambda: CGC(2, E, E, F), lambda layer: layer.task_experts[1]),
}


@pytest.mark.parametrize("name", LENDERS)
def test_a_bank_that_a_layer_built_by_itself_may_be_lent(name, rng, tmp_path):
    make, bank_of = LENDERS[name]
    inputs, first = keras.Input((5, D)), make()
    x = keras.tree.flatten(first(inputs))[-1]
    block = MoEBlock(E, experts=bank_of(first))
    model = with_other_weights(keras.Model(inputs, block(x)), rng)
    x = draw(rng, 6, 5, D)
    for _ in range(2):
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert again.layers[-1].experts is bank_of(again.layers[1])
        assert len(again.variables) == len(model.variables)
        np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
        model = with_other_weights(again, rng)


@pytest.mark.parametrize(
    "router, message",
    [
        (lambda: Router(E), "`router` must be None or a HierarchicalRouter"),
        (lambda: HierarchicalRouter(E, 1), "the layer's `num_groups`"),
        (
            lambda: HierarchicalRouter(E, 2, top_k_groups=2),
            "`top_k` must be left out where `router` is given",
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


def test_a_loaded_model_trains_its_shared_bank(rng, tmp_path):
    chain(two_blocks()).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    bank, same = experts_of(model)
    before = bank.get_weights()
    model.compile("sgd", "mse")
    model.fit(draw(rng, 8, 5, D), draw(rng, 8, 1), batch_size=8, verbose=0)
    assert bank is same
    for was, now in zip(before, bank.get_weights(), strict=True):
        assert np.abs(now - was).max() > 1e-7


@pytest.mark.skipif(
    BACKEND != "torch", reason="the run on PyTorch loads on the others"
)
def test_loaded_elsewhere_it_is_still_shared(rng, tmp_path):
    """Every sharing in one model. A copy would find no weights in the file,
    which is an error, and would compute something else."""
    layers = [*transformers(), *three_blocks()]
    model = with_other_weights(chain(layers), rng)
    x = draw(rng, 6, 5, D)
    np.save(tmp_path / "x.npy", x)
    model.save(tmp_path / "model.keras")
    here = to_numpy(model(x))
    for other in ("jax", "tensorflow"):
        run_on(other, "load_elsewhere", tmp_path)
        there = np.load(tmp_path / f"model.{other}.npy")
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-5)


COPIES = {  # ways to a copy of a model without a file
    "clone_model": keras.models.clone_model,
    "from_config": lambda model: keras.Model.from_config(model.get_config()),
    "a deep copy of the config": lambda model: keras.Model.from_config(
        copy.deepcopy(model.get_config())
    ),
    "JSON": lambda model: keras.models.model_from_json(model.to_json()),
}


def warned(make):
    """The result of a function, and its warnings of copies."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = make()
    texts = [str(w.message) for w in caught]
    return result, [text for text in texts if "copies now" in text]


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_copy_without_a_file_shares_nothing_and_warns(name, way):
    """Once per shared layer: of three blocks with a bank and a router in
    common, once; of transformers that share a block, and experts, twice."""
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


def test_a_copy_of_the_copies_is_saved_with_parts_of_their_own(tmp_path):
    again, _ = warned(lambda: keras.models.clone_model(chain(three_blocks())))
    again.save(tmp_path / "model.keras")
    loaded, texts = warned(
        lambda: keras.saving.load_model(tmp_path / "model.keras")
    )
    assert not texts
    assert len({id(bank) for bank in experts_of(loaded)}) == 3
    assert len(loaded.variables) == len(again.variables)


@pytest.mark.parametrize("collect", [False, True])
def test_blocks_from_one_dict_of_arguments(collect):
    """Several blocks hold one router; each is built from its config without
    a warning, whether or not the others are alive."""
    arguments = {"num_experts": E, "router": Router(E), "experts": Expert(F, E)}
    configs, others = [], []
    for _ in range(3):
        block = MoEBlock(**arguments)
        block.itself = block  # only the garbage collector can end it
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


def test_mixtures_of_models_share_through_a_file(tmp_path):
    """A router, features, and an expert; and a layer of two lists."""
    router, features = Router(2, 1), keras.layers.Dense(3)
    expert, dense = keras.layers.Dense(D), keras.layers.Dense(D)
    inputs = keras.Input((D,))
    x = inputs
    for i in range(2):
        x = x + MixtureOfModels(
            [expert, keras.layers.Dense(D)],
            router=router,
            features=features,
            name=f"mixture_{i}",
        )(x)
        x = x + MoEBlock(
            experts=[dense, keras.layers.Dense(D)], name=f"block_{i}"
        )(x)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    one, other = (again.get_layer(f"mixture_{i}") for i in range(2))
    assert one.router is other.router and one.features is other.features
    assert one.experts.layers[0] is other.experts.layers[0]
    assert one.experts.layers[1] is not other.experts.layers[1]
    one, other = (again.get_layer(f"block_{i}") for i in range(2))
    assert one.experts.layers[0] is other.experts.layers[0]
    assert len(again.variables) == len(model.variables)
    x = np.ones((3, D), "float32")
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
    clone, texts = warned(lambda: keras.models.clone_model(model))
    assert len(texts) == 2  # of the second mixture, and of the second block
    assert len(clone.variables) > len(model.variables)


def test_a_part_of_one_block_is_not_marked():
    """Alone again, a block is cloned as ever; its config names no id."""
    block = MoEBlock(E, experts=Expert(F, E))
    assert "shared_object_id" not in block.get_config()["experts"]
    again = MoEBlock.from_config(block.get_config())
    assert again.get_config() == block.get_config()
    plain = MoEBlock(E, F)
    assert "experts" not in plain.get_config()
    MoEBlock(E, experts=plain.experts)


def test_weights_alone_load_into_a_twin(tmp_path, rng):
    x = draw(rng, 2, 5, D)
    model, twin = (
        with_other_weights(chain(two_blocks()), rng) for _ in range(2)
    )
    model.save_weights(tmp_path / "model.weights.h5")
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(twin(x)), to_numpy(model(x)))


def test_a_width_that_does_not_fit_is_an_error():
    first, second = two_blocks()
    first(np.zeros((2, D), "float32"))
    with pytest.raises(ValueError, match="must have 8 as last dimension"):
        second(np.zeros((2, D + 1), "float32"))


def test_parts_that_are_given_and_not_shared_load_too(tmp_path):
    """Keras marks the default arguments that it meets twice in a model."""
    blocks = [
        MoEBlock(E, experts=Expert(F, E), router=Router(E), name=f"block_{i}")
        for i in range(2)
    ]
    model = chain(blocks)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.variables) == len(model.variables)
    assert len({id(bank) for bank in experts_of(again)}) == 2


def test_experts_are_shared_or_given():
    first = MoEBlock(E, F)
    assert MoEBlock(E, experts=first.experts).experts is first.experts
    with pytest.raises(ValueError, match="`share_experts_with` must be"):
        MoEBlock(E, experts=first.experts, share_experts_with=first)
    with pytest.raises(ValueError, match="`share_experts_with` must be"):
        MoEBlock(E, share_experts_with=Router(E))
