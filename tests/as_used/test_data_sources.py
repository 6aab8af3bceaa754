"""`fit` takes the same steps on every kind of data set as on arrays."""

import keras
import numpy as np
import pytest
from data_sources import SOURCES
from user_layers import D

from keras_moe import MoEBlock


def make_model():
    """Return a compiled model with a block and a capacity."""
    inputs = keras.Input((None, D))
    x = inputs + MoEBlock(4, 12, capacity_factor=1.25)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.fixture(scope="module")
def arrays():
    """Return the data, the initial weights, and those after two epochs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 5, D)).astype("float32")
    y = rng.normal(size=(24, 1)).astype("float32")
    model = make_model()
    first = model.get_weights()
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return x, y, first, model.get_weights()


@pytest.mark.parametrize("source", SOURCES)
def test_fit_on(arrays, source):
    x, y, first, expected = arrays
    model = make_model()
    model.set_weights(first)
    data = SOURCES[source](x, y, 8)
    # One pass over a grain data set would end with a warning.
    steps = 3 if source == "grain" else None
    model.fit(data, epochs=2, steps_per_epoch=steps, shuffle=False, verbose=0)
    for found, right in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)


def test_the_wrapper_for_scikit_learn(rng):
    """Cross-validation clones the `SKLearnClassifier`."""
    from sklearn.model_selection import cross_val_score

    def build(X, y, intermediate_dim=12):
        inputs = keras.Input(X.shape[1:])
        x = inputs + MoEBlock(4, intermediate_dim)(inputs)
        outputs = keras.layers.Dense(2, activation="softmax")(x)
        model = keras.Model(inputs, outputs)
        model.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy")
        return model

    x = rng.normal(size=(60, D)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    x[:, 2] = 4.0 * y - 2.0
    classifier = keras.wrappers.SKLearnClassifier(build)
    # Keras loses the wrapper's `fit_kwargs` when scikit-learn clones it.
    options = {"epochs": 20, "verbose": 0}
    scores = cross_val_score(classifier, x, y, cv=2, params=options)
    assert scores.min() > 0.9
