"""Test routing by modality: embedding, losses, and a trunk of three."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy
from entropies import entropies_of
from router_zoo import arrays

from keras_moe import (
    ModalityEmbedding,
    ModalityRouter,
    MoEBlock,
    TransformerEncoderBlock,
    metrics,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def test_embedding_by_hand():
    layer = ModalityEmbedding(["text", "image"])
    layer.build({"text": (None, 2, 3), "image": (None, 1, 3)})
    layer.embeddings.assign([[1, 1, 1], [2, 2, 2]])
    words = np.arange(12, dtype="float32").reshape(2, 2, 3)
    patch = np.full((2, 1, 3), 0.5, "float32")
    mask = {"text": np.array([[True, False], [True, True]])}
    got = layer({"image": patch, "text": words}, mask=mask)
    expected = np.concatenate([words + 1, patch + 2], axis=1)
    np.testing.assert_array_equal(to_numpy(got.tokens), expected)
    np.testing.assert_array_equal(to_numpy(got.modality), [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(
        to_numpy(got.mask), [[True, False, True], [True, True, True]]
    )
    listed = layer([words, patch], mask=[mask["text"], None])
    for one, other in zip(got, listed, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    alone = layer({"image": patch})
    np.testing.assert_array_equal(to_numpy(alone.tokens), patch + 2)
    np.testing.assert_array_equal(to_numpy(alone.modality), [[1]] * 2)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_embedding_has_its_shapes_and_dtypes(policy, rng):
    layer = ModalityEmbedding(["a", "b"], dtype=policy, name="join")
    again = ModalityEmbedding.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    symbolic = layer([keras.Input((2, 4)), keras.Input((None, 4))])
    assert symbolic.tokens.shape == (None, None, 4)
    values = [draw(rng, 3, 2, 4), draw(rng, 3, 5, 4)]
    eager = layer(values)
    shapes = layer.compute_output_shape([v.shape for v in values])
    dtype = keras.backend.standardize_dtype
    for one, other, shape in zip(symbolic, eager, shapes, strict=True):
        assert dtype(one.dtype) == dtype(other.dtype)
        assert tuple(other.shape) == shape
    assert dtype(eager.tokens.dtype) == policy.removeprefix("mixed_")
    assert [w.dtype for w in layer.weights] == ["float32"]


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"text": (2, 3, 4), "smell": (2, 1, 4)}, "some of the names"),
        ({}, "some of the names"),
        ([(2, 3, 4)], "must have 2 entries"),
        ([(2, 3, 4), (2, 3, 5)], "one hidden_dim for all modalities"),
        ([(2, 4), (2, 4)], "must be of shape"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    layer = ModalityEmbedding(["text", "image"])
    inputs = keras.tree.map_shape_structure(np.zeros, inputs)
    with pytest.raises(ValueError, match=message):
        layer(inputs)


@pytest.mark.parametrize("names", [[], "text", ["a", "a"], [1, 2]])
def test_names_that_do_not_fit_a_modality(names):
    with pytest.raises(ValueError, match="`modalities` must be distinct"):
        ModalityEmbedding(names)


MODALITIES = ["text", "image", "sound"]
WIDTH, LENGTH = 12, 5


def digits(rng, samples):
    """Return digits as words, pictures, and tones, and as numbers.

    The words are those of a toy language, padded with 0. The pitch of a tone
    depends on the digit.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    images, y = datasets.load_digits(return_X_y=True)
    images, y = images[:samples], y[:samples]
    patches = images.reshape(-1, 4, 16).astype("float32") / 16
    words = np.zeros((samples, LENGTH), "int32")
    words[:, 0], words[:, 1] = 1 + y // 4, 4 + y % 4
    words[::2, 2] = 8  # a word without meaning
    time = np.arange(24) + rng.integers(0, 9, (samples, 1))
    tone = np.sin(time * (0.2 + 0.25 * y[:, None]))
    frames = tone.reshape(samples, 3, 8).astype("float32")
    return {"text": words, "image": patches, "sound": frames}, y


def trunk():
    """Return one trunk over three modalities, and a model of its routing."""
    inputs = {
        "text": keras.Input((None,), dtype="int32", name="text"),
        "image": keras.Input((4, 16), name="image"),
        "sound": keras.Input((3, 8), name="sound"),
    }
    layers = keras.layers
    x = {
        "text": layers.Embedding(9, WIDTH, mask_zero=True)(inputs["text"]),
        "image": layers.Dense(WIDTH)(inputs["image"]),
        "sound": layers.Dense(WIDTH)(inputs["sound"]),
    }
    tokens, ids, _ = ModalityEmbedding(MODALITIES, name="join")(x)
    router = ModalityRouter(
        5, 3, threshold=np.log(2), local_entropy_weight=[0.05, 0.0, 0.0]
    )
    block = MoEBlock(5, 16, router=router, name="block")
    layer = TransformerEncoderBlock(2, block, name="transformer")
    x, assignment = layer(tokens, router_inputs=ids, return_assignment=True)
    x = layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, layers.Dense(10)(x))
    return model, keras.Model(inputs, [*assignment, ids])


@pytest.fixture(scope="module")
def fitted():
    """Return a trained model, its routing, 16 samples, and the losses."""
    keras.utils.set_random_seed(0)
    model, routing = trunk()
    x, y = digits(np.random.default_rng(0), 256)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(x, y, batch_size=64, epochs=6, verbose=0)
    x = {name: value[:16] for name, value in x.items()}
    return model, routing, x, history.history["loss"]


@pytest.mark.every_backend
def test_three_modalities_train_through_one_trunk(fitted):
    _, _, _, losses_of_training = fitted
    assert losses_of_training[-1] < 0.5 * losses_of_training[0]


def test_the_loss_of_the_model_is_numpys(fitted):
    """The weighted entropy losses exclude padding tokens."""
    _, routing, x, _ = fitted
    *_, probs, _, loss, ids = (to_numpy(v) for v in routing(x))
    ids = ids.ravel()
    mask = np.concatenate([x["text"] != 0, np.ones((16, 7), "bool")], axis=1)
    np.testing.assert_array_equal(
        ids, np.tile([0] * LENGTH + [1] * 4 + [2] * 3, 16)
    )
    local, spread = entropies_of(probs, ids, 3, mask.ravel())
    expected = 0.05 * local[0]
    expected += 0.01 * np.maximum(0, np.log(2) - spread).sum()
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.every_backend
def test_a_block_adds_the_routers_loss(rng):
    """Only training adds the loss, and the balancing loss comes after it."""
    block = MoEBlock(3, 4, router=ModalityRouter(3, 2))
    x, ids = draw(rng, 6, 3), np.arange(6) % 2
    block(x, router_inputs=ids)
    assert block.losses == []
    _, a = block(x, router_inputs=ids, training=True, return_assignment=True)
    own, _ = block.losses
    local, spread = entropies_of(
        arrays(a).router_probs, ids, 2, np.ones(6, "bool")
    )
    expected = 0.01 * (local.sum() - spread.sum())
    assert float(to_numpy(own)) == pytest.approx(expected, abs=1e-6)


def test_padding_of_one_modality_changes_nothing(fitted):
    model, routing, x, _ = fitted
    longer = {**x, "text": np.pad(x["text"], [[0, 0], [0, 3]])}
    np.testing.assert_allclose(
        to_numpy(model(longer)), to_numpy(model(x)), atol=1e-5
    )
    one, other = ([to_numpy(v) for v in routing(v)] for v in (x, longer))
    assert one[5] == pytest.approx(other[5], rel=1e-5)
    assert (one[1] == 5).sum() == 2 * (x["text"] == 0).sum()
    assert (other[1] == 5).sum() == 2 * (longer["text"] == 0).sum()


def test_the_load_of_each_modality_is_computed(fitted):
    _, routing, x, _ = fitted
    token_index, index, *_, ids = routing(x)
    load = to_numpy(metrics.expert_load_by_group(index, token_index, ids, 5, 3))
    index, ids = to_numpy(index), to_numpy(ids).ravel()
    for m in range(3):
        mine = index[np.repeat(ids == m, 2)]
        counts = np.bincount(mine[mine < 5], minlength=5)
        np.testing.assert_allclose(load[m], counts / counts.sum(), atol=1e-6)


def test_it_is_saved_and_loaded(fitted, tmp_path):
    model, _, x, _ = fitted
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
