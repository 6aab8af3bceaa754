"""Test FGM and R-Drop: the papers' losses, in `fit`, on every backend."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from zoo import WIDTH

from keras_moe import MoEBlock
from keras_moe.training import FGM, RDrop, adversarial_step
from keras_moe.training.r_drop import SymmetricDivergence

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def fit_once(model, x, y, **options):
    """Train on one batch, and return the loss before the step."""
    return model.fit(x, y, batch_size=len(x), verbose=0, **options).history[
        "loss"
    ][0]


def test_the_step_has_its_length_in_the_gradients_direction(rng):
    gradient = draw(rng, 3, 4, 5) * np.array([1, 1e-25, 0])[:, None, None]
    step = to_numpy(adversarial_step(gradient.astype("float32"), 0.3))
    norm = np.sqrt((gradient[:2] ** 2).sum((1, 2), keepdims=True))
    np.testing.assert_allclose(step[:2], 0.3 * gradient[:2] / norm, rtol=1e-4)
    np.testing.assert_array_equal(step[2], np.zeros((4, 5)))


def linear_model():
    """Return a model of ids (B, 2), embeddings (B, 2, 3), and sums (B, 1)."""
    ids = keras.Input((2,), dtype="int32")
    x = keras.layers.Embedding(5, 3, name="words")(ids)
    x = keras.layers.Flatten()(x)
    y = keras.layers.Dense(1, use_bias=False, activity_regularizer="l2")(x)
    return keras.Model(ids, y)


@pytest.mark.every_backend
@pytest.mark.parametrize("weighted", [False, True])
def test_fgm_on_a_linear_model(rng, weighted):
    """The adversarial move adds epsilon |w| to |w e - y|.

    The gradient d(w e - y)^2 / de points along +-w. A loss that a layer adds
    counts once, in the training step as well.
    """
    model = linear_model()
    ids = np.array([[1, 2], [3, 0], [4, 4]], "int32")
    y = np.array([[0.5], [-1.0], [2.0]], "float32")
    weight = np.array([1.0, 0.5, 2.0], "float32") if weighted else np.ones(3)
    w = to_numpy(model.layers[-1].kernel)[:, 0]
    output = to_numpy(model(ids))
    away = np.abs(output - y)[:, 0]
    clean = (weight * away**2).mean()
    moved = (weight * (away + 0.7 * np.linalg.norm(w)) ** 2).mean()
    added = 0.01 * (output**2).sum() / 3
    fgm = FGM(model, "words", epsilon=0.7, weight=0.25)
    fgm.compile(keras.optimizers.SGD(0.0), "mse")
    got = fit_once(fgm, ids, y, sample_weight=weight if weighted else None)
    assert got == pytest.approx(clean + 0.25 * moved + added, rel=1e-4)
    evaluated = fgm.evaluate(ids, y, verbose=0)
    assert evaluated == pytest.approx(
        ((output - y) ** 2).mean() + added, rel=1e-4
    )


def test_fgm_learns_from_both_losses():
    """The gradients of both losses are derived by hand.

    For f = w e, one example, and a target of 0, the losses are (w e)^2 and
    (w e + epsilon |w| sign(w e))^2, with the move held constant.
    """
    inputs = keras.Input((1,))
    x = keras.layers.Dense(1, use_bias=False, name="embed")(inputs)
    y = keras.layers.Dense(1, use_bias=False)(x)
    model = keras.Model(inputs, y)
    model.set_weights([np.array([[2.0]]), np.array([[-3.0]])])
    fgm = FGM(model, model.get_layer("embed"), epsilon=0.5)
    fgm.compile(keras.optimizers.SGD(0.01), "mse")
    fit_once(fgm, np.ones((1, 1), "float32"), np.zeros((1, 1)))
    # e = 2, dL/de = 2 w^2 e > 0, so r = +0.5, and f(e + r) = -7.5.
    of_w = 2 * (-6.0) * 2 + 2 * (-7.5) * 2.5
    of_e = 2 * (-6.0) * -3 + 2 * (-7.5) * -3
    embed, kernel = (float(to_numpy(w)[0, 0]) for w in model.weights)
    assert kernel == pytest.approx(-3 - 0.01 * of_w, rel=1e-5)
    assert embed == pytest.approx(2 - 0.01 * of_e, rel=1e-5)


def moe_classifier(dropout=0.3):
    ids = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(9, WIDTH, mask_zero=True, name="words")(ids)
    x = keras.layers.Dropout(dropout, seed=1)(x)
    x = MoEBlock(3, 6, name="moe")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, keras.layers.Dense(3, "softmax")(x))


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "wrap",
    [lambda m: FGM(m, "words", 0.05), lambda m: RDrop(m, alpha=0.5)],
    ids=["fgm", "r-drop"],
)
def test_training_saving_and_loading(wrap, rng, tmp_path):
    """The loss falls, and statistics count a batch once."""
    model = moe_classifier(dropout=0.1)
    wrapped = wrap(model)
    wrapped.compile(
        keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy"
    )
    x = np.repeat(rng.integers(1, 9, size=(32, 1)), 4, axis=1).astype("int32")
    x[:, 3] = 0
    y = x[:, 0] % 3
    losses = wrapped.fit(x, y, batch_size=16, epochs=12, verbose=0)
    losses = losses.history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]
    statistics = model.get_layer("moe").statistics
    assert to_numpy(statistics.num_batches).tolist() == [24]
    assert wrapped.trainable_weights == model.trainable_weights
    wrapped.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again) is type(wrapped)
    for argument in wrapped.arguments:
        assert getattr(again, argument) == getattr(wrapped, argument)
    for one, other in zip(again.weights, wrapped.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_the_symmetric_divergence(rng):
    """The divergence is half the sum of KL both ways, also from logits."""
    a, b = draw(rng, 2, 4, 3)
    p, q = softmax(a), softmax(b)
    both = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    for given, from_logits in (((p, q), False), ((a, b), True)):
        got = to_numpy(SymmetricDivergence(from_logits)(*given))
        np.testing.assert_allclose(got, both.mean() / 2, rtol=1e-4)
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    got = to_numpy(SymmetricDivergence()(p, q, weight))
    np.testing.assert_allclose(got, (weight * both).mean() / 2, rtol=1e-4)


@keras.saving.register_keras_serializable(package="tests")
class Alternating(keras.layers.Layer):
    """A stand-in for dropout that multiplies its calls by 1, 2, 3, ..."""

    def build(self, input_shape):
        self.calls = self.add_weight(
            name="calls", shape=(1,), initializer="ones", trainable=False
        )

    def call(self, x, training=None):
        if not training:
            return x
        outputs = x * keras.ops.convert_to_tensor(self.calls)
        self.calls.assign(keras.ops.add(self.calls, 1.0))
        return outputs


@pytest.mark.every_backend
def test_r_drop_is_the_papers_loss(rng):
    """The first pass has logits z, and the second has 2 z; alpha is 0.6."""
    inputs = keras.Input((3,))
    layer = Alternating()
    model = RDrop(keras.Model(inputs, layer(inputs)), 0.6, from_logits=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss)
    z, y = draw(rng, 5, 3), np.array([0, 1, 2, 1, 0])
    p, q = softmax(z), softmax(2 * z)
    rows = np.arange(5)
    nll = -np.log(p[rows, y]) - np.log(q[rows, y])
    both = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    y_pred = model(z, training=True)
    got = to_numpy(model.compute_loss(z, y, y_pred, training=True))
    np.testing.assert_allclose(got, (nll + 0.6 * both / 2).mean(), rtol=1e-5)
    assert to_numpy(layer.calls).tolist() == [2]  # only the first call counts
    plain = to_numpy(model.compute_loss(z, y, model(z), training=False))
    np.testing.assert_allclose(plain, -np.log(p[rows, y]).mean(), rtol=1e-5)


def test_a_layer_called_twice_cannot_be_moved():
    shared = keras.layers.Dense(2, name="shared")
    inputs = keras.Input((2,))
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ValueError, match="must be called once.*2 times"):
        FGM(model, shared)(np.ones((1, 2), "float32"), training=True)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda m: FGM(m, "unknown"), "`embedding` must name one layer"),
        (lambda m: FGM(m, "words", epsilon=-1), "`epsilon` must"),
        (lambda m: FGM(m, "words", weight=-1), "`weight` must"),
        (lambda m: RDrop(m, alpha=-1), "`alpha` must"),
        (lambda m: FGM(RDrop(m), "words"), "`model` must not be a RDrop"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        make(linear_model())


def test_one_class_and_no_loss():
    model = RDrop(linear_model())
    model.compile("sgd", "mse")
    ids, y = np.ones((2, 2), "int32"), np.ones((2, 1), "float32")
    with pytest.raises(ValueError, match="must have one output.*two or more"):
        model.compute_loss(ids, y, model(ids, training=True))
    model = FGM(linear_model(), "words")
    model.compile("sgd")
    with pytest.raises(ValueError, match="FGM must be compiled with a `loss`"):
        model.compute_loss(ids, y, model(ids, training=True))
