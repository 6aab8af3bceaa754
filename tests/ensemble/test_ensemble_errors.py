"""Test the errors of arguments, members, and data of ensembles."""

import re

import keras
import numpy as np
import pytest

from keras_moe import Ensemble
from keras_moe.ensemble import StackingHead

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def dense(outputs=2, inputs=4):
    return keras.Sequential(
        [keras.Input((inputs,)), keras.layers.Dense(outputs)]
    )


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [x, x])


X, Y = np.zeros((8, 4), "float32"), np.zeros(8, "int32")

ARGUMENTS = [
    (
        lambda: Ensemble([]),
        "`models` must be a list of one or more Keras models",
    ),
    (lambda: Ensemble(["model"]), "`models` must be a list of one or more"),
    (lambda: Ensemble([dense()] * 2), "`models` must not hold a model twice"),
    (
        lambda: Ensemble([dense(2), dense(3)]),
        "`models` must each have one output",
    ),
    (lambda: Ensemble([two_outputs()]), "`models` must each have one output"),
    (
        lambda: Ensemble([Subclassed()]),
        "`models` must hold at least one Functional",
    ),
    (lambda: Ensemble([dense()], "average"), "`method` must be one of"),
    (
        lambda: Ensemble([dense()], "soft_vote", regression=True),
        "`regression` must not be combined with method='soft_vote'",
    ),
    (
        lambda: Ensemble([dense()], regression=True, from_logits=True),
        "`regression` must not be combined with from_logits=True",
    ),
    (
        lambda: Ensemble([dense()], "hard_vote", train_members=True),
        "`train_members` must not be combined with method='hard_vote'",
    ),
    (
        lambda: Ensemble(
            [dense()], "snapshot", num_snapshots=3, train_members=True
        ),
        "`train_members` must not be combined with method='snapshot'",
    ),
    (
        lambda: Ensemble([dense()], meta_model=dense()),
        "`meta_model` must not be combined with method='mean'",
    ),
    (
        lambda: Ensemble([dense()], num_snapshots=2),
        "`num_snapshots` must not be combined with method='mean'",
    ),
    (
        lambda: Ensemble(dense(), "snapshot"),
        "`num_snapshots` must be an integer",
    ),
    (
        lambda: Ensemble([dense(), dense()], "snapshot", num_snapshots=3),
        "`models` must be one model if method='snapshot'",
    ),
    (
        lambda: Ensemble([dense()], "stacking", meta_model=StackingHead(3)),
        "`num_members` must divide",
    ),
]


@pytest.mark.parametrize("make, message", ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_arguments(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("method", ["mean", "soft_vote", "hard_vote", "median"])
def test_nothing_to_learn(method):
    ensemble = Ensemble([dense(), dense()], method)
    ensemble.compile("adam", "mse")
    with pytest.raises(
        ValueError, match=r"needs weights to learn.*`fit_members"
    ):
        ensemble.fit(X, Y, verbose=0)


def test_a_frozen_ensemble_has_nothing_to_learn():
    ensemble = Ensemble([dense()], "weighted", trainable=False)
    ensemble.compile("adam", "mse")
    with pytest.raises(ValueError, match="trainable=False"):
        ensemble.fit(X, Y, verbose=0)


def test_members_that_are_not_compiled():
    with pytest.raises(ValueError, match="the ensemble is not compiled either"):
        Ensemble([dense()]).fit_members(X, Y, verbose=0)
    ensemble = Ensemble([dense()], "soft_vote", from_logits=True)
    ensemble.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="theirs takes logits"):
        ensemble.fit_members(X, Y, verbose=0)


def test_a_bootstrap_needs_arrays():
    ensemble = Ensemble([dense()])
    with pytest.raises(ValueError, match="`bootstrap` must be False"):
        ensemble.fit_members(iter([(X, Y)]), bootstrap=True)


def snapshots(optimizer="adam"):
    ensemble = Ensemble(dense(), "snapshot", num_snapshots=2)
    ensemble.compile(optimizer, "mse")
    return ensemble


def test_snapshots_have_whole_cycles():
    with pytest.raises(ValueError, match="`epochs` must be a multiple"):
        snapshots().fit(X, Y, epochs=3, verbose=0)
    with pytest.raises(ValueError, match="`fit_members` must not be called"):
        snapshots().fit_members(X, Y)
    with pytest.raises(ValueError, match="Pass `steps_per_epoch`"):
        snapshots().fit(iter([(X, Y)]), epochs=2, verbose=0)
    decay = keras.optimizers.schedules.CosineDecay(0.1, 5)
    with pytest.raises(ValueError, match="`learning_rate` must be a number"):
        snapshots(keras.optimizers.Adam(decay)).fit(X, Y, epochs=2, verbose=0)


def test_weights_of_a_method_without_weights():
    with pytest.raises(ValueError, match="`member_weights` needs"):
        Ensemble([dense()]).member_weights()


def test_diversity_needs_classes():
    ensemble = Ensemble([dense(), dense()], regression=True)
    with pytest.raises(ValueError, match="`diversity` needs"):
        ensemble.diversity(X, Y)
    with pytest.raises(ValueError, match="`y` must hold classes of shape"):
        Ensemble([dense()]).diversity(X, Y[:3], verbose=0)


def test_a_subclassed_model_beside_a_functional_one():
    ensemble = Ensemble([dense(), Subclassed()])
    assert ensemble.predict(X, verbose=0).shape == (8, 2)
