"""Models of which training updates only some of the layers inside."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy

from keras_moe.model_surgery.partly_trained import PartlyTrained

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


class LastLayerTrains(PartlyTrained, keras.Model):
    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(3)
        self.noise = keras.layers.Dropout(0.5, seed=1)
        self.last = keras.layers.Dense(2)

    def call(self, inputs, training=None):
        return self.last(self.noise(self.first(inputs), training=training))

    def _trained_layers(self):
        return [self.last]


@pytest.fixture
def model(rng):
    model = LastLayerTrains()
    model(draw(rng, 4, 3))
    return model


def test_variables_outside_the_trained_layers_do_not_train(model):
    trained = model.trainable_variables
    assert [id(v) for v in trained] == [id(v) for v in model.last.variables]
    assert [id(w) for w in model.trainable_weights] == [id(v) for v in trained]
    others = model.non_trainable_variables
    assert len(others) == len(model.variables) - len(trained)
    assert len(model.non_trainable_weights) == 2  # without the random state
    assert not {id(v) for v in others} & {id(v) for v in trained}


def test_a_frozen_layer_does_not_train(model):
    model.last.trainable = False
    assert model.trainable_variables == []
    assert len(model.non_trainable_variables) == len(model.variables)
    model.last.trainable = True
    model.trainable = False
    assert model.trainable_weights == []


@pytest.mark.every_backend
def test_fit_changes_the_trained_layers_alone(rng, model):
    x, y = draw(rng, 8, 3), draw(rng, 8, 2)
    first, last = to_numpy(model.first.kernel), to_numpy(model.last.kernel)
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.first.kernel, first)
    assert np.abs(to_numpy(model.last.kernel) - last).max() > 0
