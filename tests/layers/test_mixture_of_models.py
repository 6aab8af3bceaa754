"""Test whole models as experts, in a dense or a sparse mixture."""

import keras
import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import layers, ops

from keras_moe import ExpertLayers, MixtureOfModels, Router, RuleRouter

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

WIDTH, CLASSES, WORDS = 3, 4, 20


def dense_experts(num_experts=3):
    return [layers.Dense(CLASSES) for _ in range(num_experts)]


def text_experts():
    """Return a convolution, an LSTM, and a bag of words on token ids."""

    def expert(encoder):
        ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(WORDS, WIDTH)(ids)
        x = encoder(x)
        return keras.Model(ids, layers.Dense(CLASSES, "softmax")(x))

    return [
        expert(
            lambda x: layers.GlobalMaxPooling1D()(
                layers.Conv1D(WIDTH, 3, padding="same")(x)
            )
        ),
        expert(lambda x: layers.LSTM(WIDTH)(x)),
        expert(lambda x: layers.GlobalAveragePooling1D()(x)),
    ]


def bag_of_words():
    return keras.Sequential(
        [layers.Embedding(WORDS, WIDTH), layers.GlobalAveragePooling1D()]
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_mixture(mixture, x, top_k):
    """Compute the mixture of Jacobs et al. 1991, eq. 1, in NumPy.

    If K > 1, the K largest weights are normalized to sum to one.
    """
    weights = softmax(x @ to_numpy(mixture.router.kernel))
    lowest = np.sort(weights, axis=-1)[:, -top_k][:, None]
    weights = np.where(weights >= lowest, weights, 0)
    if top_k > 1:
        weights /= weights.sum(-1, keepdims=True)
    outputs = [
        x @ to_numpy(e.kernel) + to_numpy(e.bias)
        for e in mixture.experts.layers
    ]
    return np.einsum("be,ebc->bc", weights, np.stack(outputs))


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
def test_values_by_numpy(top_k, rng):
    mixture = MixtureOfModels(dense_experts(), top_k=top_k)
    x = draw(rng, 7, WIDTH)
    np.testing.assert_allclose(
        to_numpy(mixture(x)),
        numpy_mixture(mixture, x, top_k or 3),
        rtol=1e-4,
        atol=1e-5,
    )


def test_sparse_with_all_experts_is_the_dense_mixture(rng):
    experts, x = dense_experts(), draw(rng, 7, WIDTH)
    dense = MixtureOfModels(experts)
    dense.build(x.shape)
    sparse = MixtureOfModels(experts, top_k=3)
    sparse.build(x.shape)
    sparse.router.set_weights(dense.router.get_weights())
    np.testing.assert_allclose(
        to_numpy(sparse(x)), to_numpy(dense(x)), rtol=1e-5, atol=1e-6
    )


@keras.saving.register_keras_serializable(package="tests")
class Counting(layers.Layer):
    """A layer that counts the rows that it gets in training."""

    def build(self, shape):
        self.rows = self.add_weight(
            name="rows", shape=(1,), initializer="zeros", trainable=False
        )

    def call(self, x, training=None):
        if training:
            seen = ops.reshape(ops.shape(x)[0], (1,))
            self.rows.assign_add(ops.cast(seen, "float32"))
        return x


@pytest.mark.every_backend
def test_only_the_chosen_experts_run(rng):
    """A rule sends 40 examples to four of five experts."""
    experts = [Counting() for _ in range(5)]
    mixture = MixtureOfModels(experts, router=RuleRouter(5))
    x = draw(rng, 40, WIDTH)
    ids = np.repeat([0, 1, 2, 3], [5, 5, 10, 20])
    y = mixture(x, router_inputs=ids, training=True)
    np.testing.assert_array_equal(to_numpy(y), x)
    rows = [float(to_numpy(e.rows)[0]) for e in experts]
    # An even share is 8 rows; JAX compiles for 10, 20, and 40.
    assert rows == (
        [10, 10, 10, 20, 0] if BACKEND == "jax" else [5, 5, 10, 20, 0]
    )


@pytest.mark.every_backend
@pytest.mark.parametrize("top_k", [None, 1])
def test_unlike_models_of_token_ids_train_and_save(top_k, rng, tmp_path):
    experts = text_experts()
    if top_k:  # JAX compiles an expert for each size, so the LSTM is left out
        del experts[1]
    mixture = MixtureOfModels(experts, top_k=top_k, features=bag_of_words())
    x = rng.integers(1, WORDS, (32, 6))
    y = x[:, 0] % CLASSES
    mixture.compile(
        keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy"
    )
    losses = mixture.fit(x, y, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    outputs = mixture.predict(x, verbose=0)
    if top_k is None:
        np.testing.assert_allclose(outputs.sum(-1), 1, rtol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    again = keras.saving.load_model(tmp_path / "mixture.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), outputs)
    own, other = mixture.get_config(), again.get_config()
    for part in ("experts", "features"):  # built parts have shapes as well
        own.pop(part), other.pop(part)
    assert own == other


def test_nests_go_in_and_come_out(rng):
    """A functional model has a dict of inputs and a dict of outputs."""

    def expert():
        text = keras.Input((5,), name="text", dtype="int32")
        image = keras.Input((4, 4, 1), name="image")
        x = layers.concatenate(
            [
                layers.Flatten()(layers.Embedding(WORDS, 2)(text)),
                layers.Flatten()(image),
            ]
        )
        return keras.Model(
            {"text": text, "image": image},
            {
                "a": layers.Dense(2)(x),
                "b": layers.Reshape((3, 1))(layers.Dense(3)(x)),
            },
        )

    features = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    text = keras.Input((5,), dtype="int32")
    image = keras.Input((4, 4, 1))
    inputs = {"text": text, "image": image}

    class OfTheImage(layers.Layer):
        def build(self, shape):
            features.build(shape["image"])

        def call(self, inputs):
            return features(inputs["image"])

        def compute_output_shape(self, shape):
            return (shape["image"][0], 3)

    mixture = MixtureOfModels(
        [expert(), expert()], top_k=1, features=OfTheImage()
    )
    model = keras.Model([text, image], mixture(inputs))
    values = [rng.integers(0, WORDS, (6, 5)), draw(rng, 6, 4, 4, 1)]
    outputs = model.predict(values, verbose=0)
    assert outputs["a"].shape == (6, 2)
    assert outputs["b"].shape == (6, 3, 1)
    _, assignment = mixture(
        {"text": values[0], "image": values[1]}, return_assignment=True
    )
    for i in range(3):
        e = int(to_numpy(assignment.expert_index)[i])
        weight = to_numpy(assignment.combine_weights)[i]
        one = {"text": values[0][i : i + 1], "image": values[1][i : i + 1]}
        alone = mixture.experts.layers[e](one)
        np.testing.assert_allclose(
            outputs["b"][i], weight * to_numpy(alone["b"])[0], atol=1e-5
        )


def test_padding_changes_nothing_and_is_sent_nowhere(rng):
    """The outputs of LSTMs do not change if padding makes the inputs longer."""
    x = draw(rng, 4, 5, WIDTH)
    longer = np.concatenate([x, draw(rng, 4, 2, WIDTH)], axis=1)
    valid = np.arange(7)[None] < np.array([5, 5, 5, 0])[:, None]
    experts = [layers.LSTM(2, unroll=True), layers.LSTM(2, unroll=True)]
    mixture = MixtureOfModels(experts, router=RuleRouter(2))
    ids = np.array([0, 1, 0, 1])
    y = to_numpy(mixture(x, router_inputs=ids))
    z, assignment = mixture(
        longer, mask=valid, router_inputs=ids, return_assignment=True
    )
    np.testing.assert_allclose(to_numpy(z)[:3], y[:3], rtol=1e-4, atol=1e-6)
    assert to_numpy(assignment.expert_index)[3] == 2
    assert not to_numpy(z)[3].any()


def test_a_mask_of_keras_reaches_the_experts_in_a_compiled_model(rng):
    """With `Embedding(mask_zero=True)`, padding changes no prediction."""
    ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(WORDS, WIDTH, mask_zero=True)(ids)
    mixture = MixtureOfModels(
        [layers.GlobalAveragePooling1D(), layers.GlobalAveragePooling1D()],
        features=layers.GlobalAveragePooling1D(),
        top_k=1,
    )
    model = keras.Model(ids, mixture(x))
    texts = rng.integers(1, WORDS, (4, 5))
    longer = np.pad(texts, ((0, 0), (0, 3)))
    np.testing.assert_allclose(
        model.predict(longer, verbose=0),
        model.predict(texts, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_capacity_drops_and_disabled_experts_are_avoided(rng):
    mixture = MixtureOfModels(
        dense_experts(2), router=RuleRouter(2), eval_capacity_factor=1.0
    )
    x = draw(rng, 6, WIDTH)
    ids = np.array([0, 0, 0, 0, 0, 1])
    y = to_numpy(mixture(x, router_inputs=ids))
    expert = mixture.experts.layers[0]
    np.testing.assert_allclose(
        y[:3], x[:3] @ to_numpy(expert.kernel), rtol=1e-4, atol=1e-6
    )
    assert not y[3:5].any()  # C = 6 / 2
    mixture = MixtureOfModels(dense_experts(2), top_k=1)
    mixture.build(x.shape)
    mixture.disable_experts([1])
    _, assignment = mixture(x, return_assignment=True)
    assert not to_numpy(assignment.expert_index).any()


@pytest.mark.parametrize("policy", ["mixed_bfloat16"])
def test_mixed_precision(policy, rng):
    keras.config.set_dtype_policy(policy)
    experts = [layers.Dense(2), layers.Dense(2, dtype="float32")]
    mixture = MixtureOfModels(experts, top_k=1)
    y = mixture(draw(rng, 5, WIDTH))
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert {w.dtype for w in experts[0].weights} == {"float32"}
    x = draw(rng, 16, WIDTH)
    mixture.compile(keras.optimizers.Adam(0.05), "mse")
    losses = mixture.fit(x, x[:, :2], epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_balance_loss_and_load_in_training(rng):
    """The loss is Switch's eq. 4: E * sum(share * mean probability)."""
    mixture = MixtureOfModels(
        dense_experts(), top_k=1, load_balancing_weight=0.5
    )
    x = draw(rng, 9, WIDTH)
    mixture(x, training=True)
    probs = softmax(x @ to_numpy(mixture.router.kernel))
    share = np.bincount(probs.argmax(1), minlength=3) / 9
    np.testing.assert_allclose(
        float(to_numpy(sum(mixture.losses))),
        0.5 * 3 * (share * probs.mean(0)).sum(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(to_numpy(mixture.expert_load), share, rtol=1e-6)


def test_bad_arguments(rng):
    with pytest.raises(ValueError, match="`top_k` must be at most"):
        MixtureOfModels(dense_experts(), top_k=4)
    with pytest.raises(ValueError, match="`top_k` must be left out"):
        MixtureOfModels(dense_experts(), router=Router(3, 2), top_k=1)
    with pytest.raises(ValueError, match="must have the block's `num_experts`"):
        MixtureOfModels(dense_experts(), router=Router(4, 2))
    with pytest.raises(ValueError, match="`features` must be given"):
        MixtureOfModels(text_experts())(rng.integers(1, WORDS, (4, 6)))
    with pytest.raises(ValueError, match="`features` must be given"):
        MixtureOfModels([Counting()]).build({"a": (None, 2)})
    assert isinstance(MixtureOfModels(dense_experts()).experts, ExpertLayers)
