"""Test blocks that share experts or a router, in a saved model."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from elsewhere import run_on
from sharing_models import (
    SHAPES,
    D,
    E,
    F,
    chain,
    every_sharing,
    experts_of,
    lent_by_groups,
    three_blocks,
    transformers,
    two_blocks,
    warned,
    with_other_weights,
)

from keras_moe import (
    CGC,
    Expert,
    MixtureOfModels,
    MoEBlock,
    MultiGateMoE,
    Router,
    SoftMoE,
)


@every_sharing
def test_loaded_here_it_is_still_shared(name, rng, tmp_path):
    """The parts are still shared when the loaded model is saved again."""
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
    """Files keep one shared router, and a copy by configs has three."""
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


LENDERS = {  # layers that build their own banks, and one of these banks
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
    """One model has every kind of sharing.

    A copy of a shared part would find no weights in the file, which is an
    error, and would compute other outputs.
    """
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


def test_a_copy_of_the_copies_is_saved_with_parts_of_their_own(tmp_path):
    again, _ = warned(lambda: keras.models.clone_model(chain(three_blocks())))
    again.save(tmp_path / "model.keras")
    loaded, texts = warned(
        lambda: keras.saving.load_model(tmp_path / "model.keras")
    )
    assert not texts
    assert len({id(bank) for bank in experts_of(loaded)}) == 3
    assert len(loaded.variables) == len(again.variables)


def test_mixtures_of_models_share_through_a_file(tmp_path):
    """Models share a router, features, and an expert; lists share a layer."""
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
    assert len(texts) == 2  # from the second mixture and the second block
    assert len(clone.variables) > len(model.variables)


def test_weights_alone_load_into_a_twin(tmp_path, rng):
    x = draw(rng, 2, 5, D)
    model, twin = (
        with_other_weights(chain(two_blocks()), rng) for _ in range(2)
    )
    model.save_weights(tmp_path / "model.weights.h5")
    twin.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(to_numpy(twin(x)), to_numpy(model(x)))


def test_parts_that_are_given_and_not_shared_load_too(tmp_path):
    """Keras marks default arguments that occur twice in a model."""
    blocks = [
        MoEBlock(E, experts=Expert(F, E), router=Router(E), name=f"block_{i}")
        for i in range(2)
    ]
    model = chain(blocks)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.variables) == len(model.variables)
    assert len({id(bank) for bank in experts_of(again)}) == 2
