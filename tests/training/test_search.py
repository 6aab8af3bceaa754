"""Test a search over a block's hyperparameters with keras_tuner."""

import keras
import pytest
from backend import draw

from keras_moe import MoEBlock
from keras_moe.training import hypermodel, search_space

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

keras_tuner = pytest.importorskip("keras_tuner")

WIDTH = 4


def build(**arguments):
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            MoEBlock(intermediate_dim=4, **arguments),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    return model


def test_what_is_drawn_is_what_a_block_takes():
    """Of 200 draws, all are in range with K at most E, and none is missing."""
    seen = {"num_experts": set(), "top_k": set(), "capacity_factor": set()}
    for seed in range(200):
        hp = keras_tuner.HyperParameters()
        search_space(hp, num_experts=(2, 4), top_k=(1, 3))
        for place, parameter in enumerate(hp.space):
            value = parameter.random_sample(10 * seed + place)
            hp.values[parameter.name] = value
        drawn = search_space(hp, num_experts=(2, 4), top_k=(1, 3))
        assert drawn["top_k"] <= drawn["num_experts"]
        assert 1e-3 <= drawn["load_balancing_weight"] <= 1e-1
        for name, values in seen.items():
            values.add(drawn[name])
    assert seen == {
        "num_experts": {2, 4},
        "top_k": {1, 3},
        "capacity_factor": {None, 1.0, 1.25, 2.0},
    }


@pytest.mark.filterwarnings(  # from keras_tuner's locks
    "ignore:currentThread:DeprecationWarning",
    "ignore:getName:DeprecationWarning",
)
def test_a_search_of_two_trials(rng, tmp_path):
    tuner = keras_tuner.RandomSearch(
        hypermodel(build, num_experts=(2, 3), top_k=(1, 3)),
        objective="val_loss",
        max_trials=2,
        seed=1,
        directory=tmp_path,
        project_name="search",
    )
    x, y = draw(rng, 8, WIDTH), draw(rng, 8, 1)
    tuner.search(x, y, validation_data=(x, y), verbose=0)
    best = tuner.get_best_hyperparameters()[0]
    assert len(tuner.oracle.trials) == 2
    assert best.get("num_experts") in (2, 3)
    block = tuner.hypermodel.build(best).layers[0]
    assert block.num_experts == best.get("num_experts")
    assert block.load_balancing_weight == best.get("load_balancing_weight")


def test_experts_too_few_for_every_top_k():
    with pytest.raises(ValueError, match="`top_k` must hold.*Received"):
        search_space(
            keras_tuner.HyperParameters(), num_experts=(1, 4), top_k=(2,)
        )
