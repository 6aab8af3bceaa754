"""Frozen layers do not change, and stay frozen in files and copies."""

import keras
import numpy as np
import pytest
from backend import to_numpy
from zoo import LAYERS, WIDTH, model_of

import keras_moe
from keras_moe import MoEBlock, Router

every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
SCHEDULE = keras.optimizers.schedules.PolynomialDecay(0.5, 10)


def rows(rng, samples=32):
    """Return inputs and targets of a small regression."""
    x = rng.normal(size=(samples, 4, WIDTH)).astype("float32") + 1
    return x, x.sum((1, 2))[:, None]


def values_of(layer):
    return [to_numpy(w) for w in layer.weights]


def parts_of(layer):
    """Return each layer inside that has weights or is not built yet."""
    return [x for x in layer._flatten_layers() if x.weights or not x.built]


def flags_of(layer):
    """Return the `trainable` flag of each part."""
    return [part.trainable for part in parts_of(layer)]


def fit(model, x, y, **options):
    model.compile(keras.optimizers.SGD(0.05), "mse", **options)
    return model.fit(x, y, batch_size=16, verbose=0).history["loss"]


STATEFUL = {
    "bias": lambda: MoEBlock(
        4,
        8,
        router=Router(4, 1, expert_bias=True, expert_bias_step=0.5, jitter=0.5),
        load_balancing_weight=SCHEDULE,
        router_z_weight=0.1,
        capacity_factor=0.5,
    ),
    "relu": lambda: MoEBlock(
        4, 8, router=keras_moe.ReLURouter(4, l1_start=1.0, expert_dropout=0.5)
    ),
    "encoder": lambda: keras_moe.TransformerEncoderBlock(
        2,
        MoEBlock(
            4, 8, router=keras_moe.NoisyTopKRouter(4, 1, expert_bias=True)
        ),
    ),
    "models": lambda: keras_moe.MixtureOfModels(
        [keras.layers.Dense(WIDTH), keras.layers.Dense(WIDTH)],
        top_k=1,
        capacity_factor=0.5,
        load_balancing_weight=SCHEDULE,
    ),
}


@pytest.mark.fast
@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_a_frozen_layer_does_not_change_and_runs_as_in_inference(make, rng):
    layer = make()
    model = model_of(layer, 4)
    layer.trainable = False
    x, y = rows(rng)
    before, outputs = values_of(layer), to_numpy(layer(x))
    np.testing.assert_array_equal(to_numpy(layer(x, training=True)), outputs)
    assert sum(map(to_numpy, layer.losses)) == 0  # experts add zero
    fit(model, x, y)
    for old, new in zip(before, values_of(layer), strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(to_numpy(layer(x)), outputs)


def test_a_frozen_router_routes_as_in_inference(rng):
    """The router's block still counts the load and drops pairs."""
    block = STATEFUL["bias"]()
    block.build((None, 4, WIDTH))
    block.router.trainable = False
    before = values_of(block.router)
    x, _ = rows(rng)
    _, evaluated = block(x, return_assignment=True)
    _, trained = block(x, training=True, return_assignment=True)
    chosen = to_numpy(evaluated.expert_index)
    kept = to_numpy(trained.expert_index)
    # C = ceil(1 * 128 * 0.5 / 4) places per expert.
    assert (np.bincount(kept, minlength=5)[:4] <= 16).all()
    np.testing.assert_array_equal(kept[kept < 4], chosen[kept < 4])
    load = np.bincount(chosen, minlength=4) / len(chosen)
    np.testing.assert_allclose(to_numpy(block.expert_load), load, rtol=1e-6)
    for old, new in zip(before, values_of(block.router), strict=True):
        np.testing.assert_array_equal(new, old)
    assert not block.losses
    assert float(to_numpy(block.scheduled_weight.steps)[0]) == 0


def test_a_router_that_trains_in_a_frozen_block_moves(rng):
    block = STATEFUL["bias"]()
    block.build((None, 4, WIDTH))
    block.trainable = False
    block.router.trainable = True
    x, _ = rows(rng)
    block(x, training=True)
    assert len(block.losses) == 2
    assert np.abs(to_numpy(block.router.expert_bias_weight)).max() > 0
    assert to_numpy(block.expert_load).sum() == 0


@pytest.mark.one_backend
@every_layer
def test_a_frozen_layer_stays_frozen_in_files_and_copies(make, tmp_path, rng):
    layer = make()
    model = model_of(layer, 4)
    layer.trainable = False
    model.save(tmp_path / "model.keras")
    by_config = model_of(type(layer).from_config(layer.get_config()), 4)
    for other in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
        by_config,
    ):
        again = other.layers[2]
        assert type(again) is type(layer)
        assert not any(flags_of(again))
        trained = {id(w) for w in other.trainable_weights}
        assert not trained & {id(w) for w in again.weights}
        assert len(trained) == 4  # two Dense layers around it


@pytest.mark.one_backend
@every_layer
def test_flags_of_parts_survive(make, tmp_path):
    """Every second layer inside is frozen."""
    layer = make()
    model = model_of(layer, 4)
    for part in parts_of(layer)[1::2]:
        part.trainable = False
    model.save(tmp_path / "model.keras")
    for other in (
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ):
        assert flags_of(other.layers[2]) == flags_of(layer)


def test_a_part_that_trains_in_a_frozen_layer_survives():
    block = MoEBlock(4, 8, name="block")
    block.build((None, WIDTH))
    block.trainable = False
    block.router.trainable = True
    config = block.get_config()
    assert config["trainable_parts"] == {"router": True}
    again = MoEBlock.from_config(config)
    assert again.get_config() == config
    again.build((None, WIDTH))
    assert again.get_config() == config
    assert flags_of(again) == flags_of(block)
    assert again.router.kernel.trainable
    again.trainable = True
    assert "trainable_parts" not in again.get_config()


def test_flags_that_are_set_before_build_are_kept():
    block = MoEBlock(4, 8, trainable=False)
    block.experts.trainable = True
    block.build((None, WIDTH))
    assert block.experts.trainable
    assert not block.router.trainable
    assert not block.statistics.trainable


def test_a_frozen_block_freezes_what_keras_layers_build_later():
    attention = keras.layers.MultiHeadAttention(2, 4)
    encoder = keras_moe.TransformerEncoderBlock(
        2, MoEBlock(2, 8, top_k=1), trainable=False
    )
    encoder.attention = attention  # not built yet
    encoder.build((None, 4, WIDTH))
    assert not any(flags_of(encoder))


def test_models_keep_the_flags_of_their_layers(tmp_path):
    model = keras_moe.models.MoEClassifier(
        num_classes=3,
        vocabulary_size=9,
        max_length=6,
        num_layers=2,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=6,
        num_experts=3,
    )
    model.layers[2].trainable = False
    model.moe_blocks[1].router.trainable = False
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert flags_of(again) == flags_of(model)
    assert len(again.trainable_weights) == len(model.trainable_weights)
    model.trainable = False
    copy = keras.models.clone_model(model)
    assert not copy.trainable_weights


def test_wrappers_and_ensembles_keep_the_flags_of_their_parts(tmp_path):
    def trunk():
        inputs = keras.Input((4, WIDTH))
        block = MoEBlock(2, 4, top_k=1, name="block")
        return keras.Model(inputs, block(inputs))

    models = [
        keras_moe.training.RDrop(trunk()),
        keras_moe.ensemble.Ensemble([trunk(), trunk()]),
        keras_moe.UncertaintyWeightedModel(trunk(), ["mse"]),
    ]
    for model in models:
        model.build((None, 4, WIDTH))
        keras_moe.find_blocks(model)[0].trainable = False
        again = type(model).from_config(model.get_config())
        assert not keras_moe.find_blocks(again)[0].trainable
        model.trainable = False
        again = type(model).from_config(model.get_config())
        assert not any(b.trainable for b in keras_moe.find_blocks(again))
