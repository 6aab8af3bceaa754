"""Test `distill`: the papers' losses in `fit`, and a frozen teacher."""

import keras
import numpy as np
import pytest
from compress_cases import WIDTH, draw, to_numpy
from model_zoo import compiled

from keras_moe import Expert, MoEBlock, kernels
from keras_moe.compress import Distiller, distill
from keras_moe.compress.soft_labels import SoftLabelLoss, router_loss

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def classifier(feed_forward, width=WIDTH, name=None, activation="softmax"):
    ids = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(9, width, mask_zero=True, name="words")(ids)
    x = feed_forward(x)
    x = keras.layers.Dense(width, name="states")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    outputs = keras.layers.Dense(3, activation, name="head")(x)
    return keras.Model(ids, outputs, name=name)


def mixture(**options):
    return MoEBlock(3, 6, name="moe", **options)


def batch_of(rng, samples=12):
    ids = np.repeat(rng.integers(1, 9, (samples, 1)), 4, axis=1).astype("int32")
    ids[: samples // 2, 3] = 0
    return ids, ids[:, 0] % 3


def fit_once(model, x, y=None):
    """Return the loss of one batch, with a learning rate of zero."""
    history = model.fit(x, y, batch_size=len(x), verbose=0)
    return history.history["loss"][0]


def loss_of(model, x, y):
    """Return the loss of a training batch, without a step."""

    def run(x, y):
        return model.compute_loss(x, y, model(x, training=True))

    tensors = [keras.ops.convert_to_tensor(a) for a in (x, y)]
    return float(to_numpy(kernels.compiled(run, model.variables)(*tensors)))


def kl(p, q):
    return (p * np.log(p / q)).sum(-1)


def test_the_soft_label_loss_is_hintons(rng):
    """The loss is t^2 KL between softmaxes of logits / t.

    It is computed from logits, and from probabilities with sample weights.
    """
    teacher, student = draw(rng, 4, 3), draw(rng, 4, 3)
    p, q = softmax(teacher / 3), softmax(student / 3)
    expected = 9 * kl(p, q)
    loss = SoftLabelLoss(3.0, from_logits=True)
    got = to_numpy(loss(teacher, student))
    np.testing.assert_allclose(got, expected.mean(), rtol=1e-4)
    loss = SoftLabelLoss(3.0)
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    got = to_numpy(loss(softmax(teacher), softmax(student), weight))
    np.testing.assert_allclose(got, (weight * expected).mean(), rtol=1e-4)


def test_router_loss_excludes_padding(rng):
    p, q = softmax(draw(rng, 4, 3)), softmax(draw(rng, 4, 3))
    mask = np.array([[True, False], [True, True]])
    got = to_numpy(router_loss(p, q, mask))
    np.testing.assert_allclose(got, kl(p, q)[[0, 2, 3]].mean(), rtol=1e-4)
    got = to_numpy(router_loss(p, q))
    np.testing.assert_allclose(got, kl(p, q).mean(), rtol=1e-4)


def test_the_loss_is_the_sum_of_its_parts(rng):
    """The parts are labels, soft labels, projected states, and routers.

    A MoE is distilled to a narrower MoE. The padding at the end of six
    examples is excluded.
    """
    student = classifier(mixture(load_balancing_weight=0.0), width=5)
    teacher = classifier(mixture(kernel_regularizer="l2"), name="teacher")
    distiller = distill(
        student,
        teacher,
        temperature=3.0,
        alpha=0.7,
        hidden=["states"],
        hidden_weight=0.5,
        router=True,
        router_weight=0.25,
    )
    distiller.compile(
        keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy"
    )
    x, y = batch_of(rng)
    parts = {}
    for model in (student, teacher):
        names = ("states", "words")
        inside = [model.get_layer(name).output for name in names]
        inside = keras.Model(model.input, [model.output, *inside])
        outputs, states, words = map(to_numpy, compiled(inside)(x))
        kernel = to_numpy(model.get_layer("moe").router.kernel)
        parts[model] = states, softmax(words @ kernel), outputs
    q, p = (parts[model][2] for model in (student, teacher))
    task = -np.log(q[np.arange(12), y]).mean()
    soft = 9 * kl(softmax(np.log(p) / 3), softmax(np.log(q) / 3)).mean()
    real = x != 0
    projected = parts[student][0] @ to_numpy(distiller.projections[0].kernel)
    # Keras's mean over a mask excludes padding.
    hidden = ((projected - parts[teacher][0]) ** 2).mean(-1)[real].mean()
    routers = kl(parts[teacher][1], parts[student][1])[real].mean()
    expected = 0.3 * task + 0.7 * soft + 0.5 * hidden + 0.25 * routers
    assert loss_of(distiller, x, y) == pytest.approx(expected, rel=1e-4)
    plain = to_numpy(distiller.compute_loss(x, y, q, training=False))
    np.testing.assert_allclose(plain, task, rtol=1e-4)


def test_the_teacher_is_frozen_and_the_student_saves_plainly(rng, tmp_path):
    """A MoE is distilled to a dense student; the projection learns, too."""
    teacher = classifier(mixture(jitter=0.5), name="teacher")
    teacher.compile("adam", "sparse_categorical_crossentropy")
    student = classifier(Expert(6, name="moe"), width=5)
    distiller = distill(student, teacher, alpha=1.0, hidden={"moe": "states"})
    distiller.compile(keras.optimizers.Adam(0.02))
    x, _ = batch_of(rng, 32)
    before = [to_numpy(w).copy() for w in teacher.weights]
    losses = distiller.fit(x, batch_size=16, epochs=8, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    for weight, value in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(weight), value)
    assert teacher.trainable
    learning = len(student.trainable_weights) + 1
    assert len(distiller.trainable_weights) == learning
    student.save(tmp_path / "student.keras")
    plain = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(
        plain.predict(x, verbose=0), distiller.predict(x, verbose=0)
    )
    distiller.save(tmp_path / "distiller.keras")
    again = keras.saving.load_model(tmp_path / "distiller.keras")
    assert type(again) is Distiller
    for argument in distiller.arguments:
        assert getattr(again, argument) == getattr(distiller, argument)
    for one, other in zip(again.weights, distiller.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.every_backend
def test_dense_to_mixture_with_the_students_balance_loss(rng):
    """Even outputs cost log(3), and an even router costs 0.01.

    The router's cost is the student's balance loss, which is added once,
    unscaled.
    """
    student = classifier(MoEBlock(2, 6, top_k=2, name="moe"))
    student.get_layer("moe").router.kernel.assign(np.zeros((WIDTH, 2)))
    teacher = classifier(Expert(6), name="teacher")
    distiller = distill(student, teacher, alpha=0.0)
    distiller.compile(
        keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy"
    )
    student.get_layer("head").kernel.assign(np.zeros((WIDTH, 3)))
    x, y = batch_of(rng)
    expected = np.log(3) + 0.01
    assert fit_once(distiller, x, y) == pytest.approx(expected, rel=1e-4)


def models():
    return classifier(mixture()), classifier(mixture(), name="teacher")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "`temperature` must"),
        ({"alpha": 1.5}, "`alpha` must"),
        ({"hidden_weight": -1}, "`hidden_weight` must"),
        ({"router_weight": -1}, "`router_weight` must"),
        ({"hidden": ["absent"]}, "must name one layer of each model"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        distill(*models(), **options)


def test_models_that_do_not_match():
    student, teacher = models()
    with pytest.raises(ValueError, match="`teacher` must not be the student"):
        distill(student, student)
    with pytest.raises(ValueError, match="`student` must be a built"):
        distill(keras.Sequential([keras.layers.Dense(2)]), teacher)
    with pytest.raises(ValueError, match="`student` must not be a Distiller"):
        distill(distill(student, teacher), teacher)
    other = classifier(MoEBlock(4, 6))
    with pytest.raises(ValueError, match="same number of experts.*Received"):
        distill(other, teacher, router=True)
    dense = classifier(Expert(6))
    with pytest.raises(ValueError, match="must contain a MoEBlock"):
        distill(dense, teacher, router=True)


def test_labels_and_outputs_that_are_missing(rng):
    student, teacher = classifier(Expert(6)), classifier(Expert(6))
    x, y = batch_of(rng, 4)
    distiller = distill(student, teacher)
    distiller.compile("sgd")
    outputs = np.full((4, 3), 1 / 3, "float32")
    with pytest.raises(ValueError, match="`alpha` must be 1 if.*Received"):
        distiller.compute_loss(x, y, outputs)
    with pytest.raises(ValueError, match="same number of classes.*Received"):
        distiller = distill(student, teacher, alpha=1.0)
        distiller.compile("sgd")
        distiller.compute_loss(x, y, outputs[:, :1])
