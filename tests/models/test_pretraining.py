"""Test self-supervised pretraining: the papers' losses, and the trunk."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from zoo import WIDTH

from keras_moe import MoEBlock
from keras_moe.training import (
    ContrastiveModel,
    MaskedTokenModel,
    contrastive_loss,
    hide_tokens,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

VOCABULARY, MASK = 11, 10


def make_trunk(experts=True):
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)(ids)
    x = keras.layers.Dropout(0.2, seed=1)(x)
    if experts:
        x = x + MoEBlock(3, 6)(x)
    return keras.Model(ids, x, name="trunk")


def test_the_draws_determine_the_hidden_tokens():
    """Chosen tokens become the mask or a random id, or do not change."""
    token_ids = np.array([[1, 2, 3, 4], [5, 6, 0, 7]], "int32")
    choose = np.array([[0.1, 0.1, 0.1, 0.2], [0.0, 0.15, 0.0, 0.1]], "float32")
    fate = np.array([[0.0, 0.85, 0.95, 0.0], [0.79, 0, 0, 0.9]], "float32")
    random_ids = np.full((2, 4), 9, "int32")
    hidden, chosen = hide_tokens(
        token_ids, (choose, fate, random_ids), MASK, 0.15
    )
    np.testing.assert_array_equal(
        to_numpy(hidden), [[10, 9, 3, 4], [10, 6, 0, 7]]
    )
    np.testing.assert_array_equal(
        to_numpy(chosen), [[1, 1, 1, 0], [1, 0, 0, 1]]
    )


@keras.saving.register_keras_serializable(package="tests")
class Identity(keras.layers.Layer):
    """A trunk whose outputs are its one-hot inputs, which show the ids."""

    def call(self, x):
        return keras.ops.one_hot(x, VOCABULARY)

    def compute_output_shape(self, input_shape):
        return (*input_shape, VOCABULARY)


def identity_model(mask_rate):
    """Return a masked-token model whose logits are 20 for the input id."""
    inputs = keras.Input((None,), dtype="int32")
    trunk = keras.Model(inputs, Identity()(inputs))
    model = MaskedTokenModel(trunk, VOCABULARY, MASK, mask_rate, seed=1)
    model.compile(keras.optimizers.SGD(0.0))
    model.build((None, None))
    model.head.kernel.assign(20 * np.eye(VOCABULARY))
    return model


def test_the_rates_are_berts(rng):
    """Shares of n draws are within five standard deviations, sqrt(p q / n)."""
    ids = rng.integers(0, MASK, size=(200, 50)).astype("int32")
    logits, chosen = identity_model(0.15)(ids)
    seen, chosen = to_numpy(logits).argmax(-1), to_numpy(chosen)
    assert not chosen[ids == 0].any()
    np.testing.assert_array_equal(seen[~chosen], ids[~chosen])
    real, n = (ids > 0).sum(), chosen.sum()
    random_ones = (seen[chosen] != ids[chosen]) & (seen[chosen] != MASK)
    for share, wanted, count in (
        (n / real, 0.15, real),
        # A random id of 1 ... 10 is the mask, or the token itself, in 1 of 10.
        ((seen[chosen] == MASK).mean(), 0.8 + 0.01, n),
        (random_ones.mean(), 0.1 * 0.8, n),
    ):
        few = 5 * np.sqrt(wanted * (1 - wanted) / count)
        assert share == pytest.approx(wanted, abs=few)
    assert seen.min() == 0 and (seen[ids > 0] > 0).all()


@pytest.mark.every_backend
def test_the_loss_is_over_chosen_tokens_alone(rng):
    """The right input id costs log(1 + 10 e^-20), and another 20 more."""
    model = identity_model(0.5)
    ids = rng.integers(0, MASK, size=(6, 8)).astype("int32")
    logits, chosen = model(ids)
    seen = to_numpy(logits).argmax(-1)
    wrong = (seen != ids)[to_numpy(chosen)]
    loss = to_numpy(model.compute_loss(x=ids, y_pred=(logits, chosen)))
    assert 0 < wrong.mean() < 1
    assert loss == pytest.approx(20 * wrong.mean(), rel=1e-4)
    nothing = np.zeros((6, 8), "int32")
    loss = model.compute_loss(x=nothing, y_pred=model(nothing))
    assert float(to_numpy(loss)) == 0


@pytest.mark.every_backend
def test_the_contrastive_loss_is_equation_1(rng):
    h, g = draw(rng, 2, 5, 4).astype("float64")
    cosine = (h @ g.T) / np.outer(
        np.linalg.norm(h, axis=1), np.linalg.norm(g, axis=1)
    )
    e = np.exp(cosine / 0.3)
    wanted = -np.log(np.diag(e) / e.sum(1)).mean()
    got = contrastive_loss(h.astype("float32"), g.astype("float32"), 0.3)
    assert float(to_numpy(got)) == pytest.approx(wanted, rel=1e-5)


def test_views_differ_by_dropout_and_leave_padding_out(rng):
    model = ContrastiveModel(make_trunk(experts=False))
    ids = np.array([[1, 2, 0, 0], [3, 4, 5, 6]], "int32")
    first, second = (to_numpy(x) for x in model(ids))
    np.testing.assert_allclose(first, second, rtol=1e-5)
    outputs = to_numpy(model.inner(ids))
    np.testing.assert_allclose(first[0], outputs[0, :2].mean(0), atol=1e-5)
    np.testing.assert_allclose(first[1], outputs[1].mean(0), atol=1e-5)
    first, second = (to_numpy(x) for x in model(ids, training=True))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "make, copies",
    [
        (
            lambda: MaskedTokenModel(make_trunk(), VOCABULARY, MASK, 0.3),
            6,
        ),
        (lambda: ContrastiveModel(make_trunk(experts=False), 0.3), 1),
    ],
    ids=["masked", "contrastive"],
)
def test_pretraining_saving_and_a_classifier_on_the_trunk(
    make, copies, rng, tmp_path
):
    """Copies of an id can be guessed, and varied sequences can be matched."""
    model = make()
    trunk = model.inner
    model.compile(keras.optimizers.Adam(0.02))
    ids = np.repeat(rng.integers(1, 10, size=(32, 6 // copies)), copies, axis=1)
    ids[:, 5] = 0
    ids = ids.astype("int32")
    embedding = to_numpy(trunk.weights[0])
    losses = model.fit(ids, batch_size=16, epochs=12, verbose=0)
    losses = losses.history["loss"]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * losses[0]
    assert (to_numpy(trunk.weights[0]) != embedding).any()
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(trunk(inputs))
    classifier = keras.Model(inputs, keras.layers.Dense(2)(x))
    assert trunk.weights[0] in classifier.trainable_weights
    assert classifier.output_shape == (None, 2)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for argument in model.arguments:
        assert getattr(again, argument) == getattr(model, argument)
    for one, other in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda t: MaskedTokenModel(t, 0, 1), "vocabulary_size"),
        (lambda t: MaskedTokenModel(t, 5, 0), "mask_token_id"),
        (lambda t: MaskedTokenModel(t, 5, 5), "mask_token_id"),
        (lambda t: MaskedTokenModel(t, 5, 4, mask_rate=0), "mask_rate"),
        (lambda t: ContrastiveModel(t, temperature=0), "temperature"),
    ],
)
def test_bad_arguments(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must .*Received"):
        make(keras.layers.Identity())


def test_a_trunk_of_another_rank():
    model = ContrastiveModel(keras.layers.Identity())
    with pytest.raises(ValueError, match="`trunk` must return.*Received"):
        model(np.ones((2, 3, 4, 5), "float32"))
