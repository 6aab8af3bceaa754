"""Routing by modality: losses, router, embedding, and a trunk of three."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy, value_and_gradients
from router_zoo import arrays, logit_router

from keras_moe import (
    ModalityEmbedding,
    ModalityRouter,
    MoEBlock,
    TransformerEncoderBlock,
    losses,
    metrics,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

LOG2 = np.log(2)


def entropy(p):
    """In nats, over the last axis, by NumPy."""
    p = np.asarray(p, "float64")
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def entropies_of(probs, ids, number, mask):
    """Mean entropy and entropy of the mean, a modality: `(M,)` each."""
    local, spread = np.zeros(number), np.zeros(number)
    for m in range(number):
        rows = probs[(ids == m) & mask]
        if len(rows):
            local[m] = entropy(rows).mean()
            spread[m] = entropy(rows.mean(0))
    return local, spread


def test_entropy_losses_by_hand():
    """Modality 0 is sure and uses both experts, 1 is unsure, 2 is sure of
    one expert, 3 is not there; the last token is padding."""
    probs = np.array(
        [[1, 0], [0, 1], [0.5, 0.5], [0, 1], [0, 1], [np.nan, np.nan]],
        "float32",
    )
    ids = np.array([0, 0, 1, 2, 2, 3], "int32")
    mask = np.array([1, 1, 1, 1, 1, 0], "bool")
    local = losses.local_entropy_loss(probs, ids, 4, mask)
    np.testing.assert_allclose(to_numpy(local), [0, LOG2, 0, 0], atol=1e-6)
    spread = losses.global_entropy_loss(probs, ids, 4, mask)
    np.testing.assert_allclose(
        to_numpy(spread), [-LOG2, -LOG2, 0, 0], atol=1e-6
    )
    spread = losses.global_entropy_loss(probs, ids, 4, mask, threshold=0.5)
    np.testing.assert_allclose(to_numpy(spread), [0, 0, 0.5, 0], atol=1e-6)
    tau = np.array([1, 0, 0.2, 9], "float32")
    spread = losses.global_entropy_loss(probs, ids, 4, mask, threshold=tau)
    np.testing.assert_allclose(
        to_numpy(spread), [1 - LOG2, 0, 0.2, 0], atol=1e-6
    )


def test_entropy_losses_equal_numpy(rng):
    probs = rng.dirichlet(np.ones(5), 40).astype("float32")
    ids = rng.integers(0, 3, 40).astype("int32")
    mask = rng.random(40) < 0.8
    local, spread = entropies_of(probs, ids, 3, mask)
    got = losses.local_entropy_loss(probs, ids, 3, mask)
    np.testing.assert_allclose(to_numpy(got), local, rtol=1e-5)
    got = losses.global_entropy_loss(probs, ids, 3, mask)
    np.testing.assert_allclose(to_numpy(got), -spread, rtol=1e-5)
    everyone = np.ones(40, "bool")
    local, _ = entropies_of(probs, ids, 3, everyone)
    got = losses.local_entropy_loss(probs, ids, 3)
    np.testing.assert_allclose(to_numpy(got), local, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.local_entropy_loss, losses.global_entropy_loss]
)
def test_gradients_of_the_entropy_losses(loss):
    """Finite where a probability is 0 or a modality is missing; downhill: the
    surer token has the lower local, the rarer expert the higher gradient."""
    probs = np.array([[1, 0, 0], [0.7, 0.2, 0.1]], "float32")
    ids = np.array([0, 1], "int32")
    _, (gradient,) = value_and_gradients(lambda p: loss(p, ids, 3), probs)
    assert np.isfinite(gradient).all()
    # d(-p log p)/dp = -(1 + log p), by the weight that the sum gives to m.
    _, (of_ones,) = value_and_gradients(lambda p: p[..., 0], probs)
    weight = of_ones[1, 0]  # the second of the same fixed weights
    sign = 1 if loss is losses.local_entropy_loss else -1
    np.testing.assert_allclose(
        gradient[1], -sign * weight * (1 + np.log(probs[1])), rtol=1e-4
    )


def test_load_by_group_by_hand():
    """Two pairs a token; group 1's second token lost a pair; 2 is empty."""
    load = metrics.expert_load_by_group(
        expert_index=np.array([0, 1, 1, 2, 3, 1], "int32"),
        token_index=np.array([0, 0, 1, 1, 2, 2], "int32"),
        group=np.array([[0, 1, 1]], "int32"),
        num_experts=3,
        num_groups=3,
    )
    np.testing.assert_allclose(
        to_numpy(load), [[0.5, 0.5, 0], [0, 2 / 3, 1 / 3], [0, 0, 0]], atol=1e-6
    )


def test_experts_of_a_modality_and_the_loss_by_hand():
    """Token 0 may use experts 0 and 1: the softmax of its logits 1 and 2."""
    router = ModalityRouter(
        3,
        2,
        top_k=1,
        experts_of_modality=[[0, 1], [2]],
        local_entropy_weight=[2, 1],
        global_entropy_weight=0.5,
    )
    logit_router(router)
    x = np.array([[1, 2, 9], [5, 1, 0]], "float32")
    ids = np.array([0, 1])
    a = arrays(router(x, router_inputs=ids))
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_array_equal(a.expert_index, [1, 2])
    np.testing.assert_allclose(a.combine_weights, [p, 1], rtol=1e-6)
    np.testing.assert_allclose(
        a.router_probs, [[1 - p, p, 0], [0, 0, 1]], atol=1e-6
    )
    np.testing.assert_array_equal(a.router_logits, x)
    h = entropy([1 - p, p])
    assert a.router_loss == pytest.approx(2 * h - 0.5 * h, rel=1e-5)
    router.disable_experts([2])
    a = arrays(router(x, router_inputs=ids))
    np.testing.assert_array_equal(a.expert_index, [1, 3])
    np.testing.assert_allclose(a.combine_weights, [p, 0], rtol=1e-6)


def test_a_bias_of_each_modality_and_ids_of_sequences():
    router = logit_router(ModalityRouter(3, 2, 1, modality_bias=True))
    router.modality_bias_weight.assign([[0, 3, 0], [0, 0, 1.5]])
    x = np.array([[[1, 0, 0], [5, 0, 0]]] * 2, "float32")
    a = arrays(router(x, router_inputs=np.array([0, 1])))
    np.testing.assert_array_equal(a.expert_index, [1, 0, 2, 0])
    np.testing.assert_allclose(a.router_logits[2], [1, 0, 1.5])
    best = np.exp(1.5) / (np.exp(1) + 1 + np.exp(1.5))
    assert a.combine_weights[2] == pytest.approx(best, rel=1e-5)


def test_thresholds_turn_the_global_loss_off(rng):
    x, ids = draw(rng, 20, 3), rng.integers(0, 2, 20)
    given = {"local_entropy_weight": 0, "global_entropy_weight": 1}
    for tau, low in ((0.0, 0.0), ([3, 0], 3 - np.log(3))):
        router = ModalityRouter(3, 2, threshold=tau, **given)
        loss = arrays(router(x, router_inputs=ids)).router_loss
        assert loss == 0 if low == 0 else low <= loss <= 3
    assert not ModalityRouter(3, 2, 2, None, 0, [0, 0]).has_loss


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_modalities": 0}, "`num_modalities` must be"),
        ({"local_entropy_weight": -1}, "`local_entropy_weight` must be"),
        ({"global_entropy_weight": [1]}, "one for each of 2 modalities"),
        ({"threshold": [1, -2]}, "`threshold` must be"),
        ({"experts_of_modality": [[0, 1]]}, "for each of the 2 modalities"),
        ({"experts_of_modality": [[0, 1], [3]]}, "top_k=2 or more experts"),
        ({"experts_of_modality": [[0, 1], [3, 4]]}, "in 0 ... 3"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ModalityRouter(**{"num_experts": 4, "num_modalities": 2, **arguments})


def test_a_modality_out_of_range_is_an_error():
    router = ModalityRouter(3, 2)
    x = np.ones((2, 4), "float32")
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="modalities in 0 ... 1"):
            router(x, router_inputs=np.array([0, bad]))
    mask = np.array([True, False])
    a = arrays(router(x, mask=mask, router_inputs=np.array([0, 9])))
    np.testing.assert_array_equal(a.expert_index[2:], [3, 3])
    assert np.isfinite(a.combine_weights).all()


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
def test_names_that_are_none(names):
    with pytest.raises(ValueError, match="`modalities` must be distinct"):
        ModalityEmbedding(names)


MODALITIES = ["text", "image", "sound"]
WIDTH, LENGTH = 12, 5


def digits(rng, samples):
    """Pictures of digits, the digit written in words of a toy language
    padded with 0, and a tone whose pitch is the digit's; and the digit."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, y = datasets.load_digits(return_X_y=True)
    images, y = images[:samples], y[:samples]
    patches = images.reshape(-1, 4, 16).astype("float32") / 16
    words = np.zeros((samples, LENGTH), "int32")
    words[:, 0], words[:, 1] = 1 + y // 4, 4 + y % 4
    words[::2, 2] = 8  # a word that says nothing
    time = np.arange(24) + rng.integers(0, 9, (samples, 1))
    tone = np.sin(time * (0.2 + 0.25 * y[:, None]))
    frames = tone.reshape(samples, 3, 8).astype("float32")
    return {"text": words, "image": patches, "sound": frames}, y


def trunk():
    """One trunk over three modalities; text may have any length."""
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
    """A model, its routing, 16 samples, and the losses of its training."""
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
    """The entropy losses, of tokens that are no padding, by their weights."""
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
    """In training alone, before the balance of all tokens."""
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


def test_the_load_of_each_modality_is_read(fitted):
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
