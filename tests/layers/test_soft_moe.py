"""Compare `SoftMoE` with the paper's equations, sequence by sequence."""

import keras
import numpy as np
import pytest
from backend import draw, layer_gradients, to_numpy, upstream
from mixture_oracle import expert, randomize, softmax

from keras_moe import SoftMoE, routing

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

B, S, D, E, Z, F = 3, 5, 4, 3, 2, 6


def made(rng, **kwargs):
    layer = SoftMoE(E, F, slots_per_expert=Z, **kwargs)
    layer.build((None, S, D))
    return randomize(layer, rng)


def by_hand(layer, x):
    """Compute eq. 1 to 3, and section 2.3, for one sequence `(S, D)`."""
    phi, tokens = to_numpy(layer.slot_kernel), x
    if layer.normalize_logits:
        tokens = x / np.linalg.norm(x, axis=1, keepdims=True)
        phi = to_numpy(layer.scale) * phi / np.linalg.norm(phi, axis=0)
    logits = tokens @ phi
    slots = softmax(logits, axis=0).T @ x
    outputs = np.concatenate(
        [expert(layer.experts, e, slots[e * Z : (e + 1) * Z]) for e in range(E)]
    )
    return softmax(logits, axis=1) @ outputs


@pytest.mark.every_backend
def test_outputs_of_another_width(rng):
    layer = made(rng, output_dim=7)
    x = draw(rng, B, S, D)
    wanted = np.stack([by_hand(layer, sequence) for sequence in x])
    assert wanted.shape == (B, S, 7)
    np.testing.assert_allclose(to_numpy(layer(x)), wanted, rtol=1e-4, atol=1e-4)
    assert layer(keras.Input((S, D))).shape == (None, S, 7)
    assert layer.compute_output_shape((None, S, D)) == (None, S, 7)
    again = SoftMoE.from_config(layer.get_config())
    assert again(x).shape == (B, S, 7)


@pytest.mark.parametrize("normalize", [False, True])
def test_it_is_the_papers_equations(rng, normalize):
    layer = made(rng, normalize_logits=normalize)
    x = draw(rng, B, S, D)
    wanted = np.stack([by_hand(layer, sequence) for sequence in x])
    np.testing.assert_allclose(to_numpy(layer(x)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*which is read as one sequence")
def test_inputs_of_any_rank(rng):
    """Rank 2 is one sequence, and more leading axes are more sequences."""
    layer = made(rng)
    x = draw(rng, B, S, D)
    wanted = to_numpy(layer(x))
    np.testing.assert_allclose(to_numpy(layer(x[0])), wanted[0], atol=1e-5)
    y = to_numpy(layer(x[None]))
    assert y.shape == (1, B, S, D)
    np.testing.assert_allclose(y[0], wanted, atol=1e-5)
    assert layer(x[:0]).shape == (0, S, D)


def test_padding_is_in_no_slot(rng):
    """Padding does not change a sequence, and padding alone gives zeros."""
    layer = made(rng)
    x = draw(rng, B, S, D)
    mask = np.arange(S) < np.array([[2], [S], [0]])
    x[~mask] = np.nan
    y = to_numpy(layer(x, mask=mask))
    np.testing.assert_array_equal(y[~mask], 0)
    for i, length in enumerate((2, S)):
        wanted = by_hand(layer, x[i, :length])
        np.testing.assert_allclose(y[i, :length], wanted, rtol=1e-4, atol=1e-4)
    _, gradients = layer_gradients(layer, x, training=True, mask=mask)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
    np.testing.assert_array_equal(gradients["inputs"][~mask], 0)


@pytest.mark.every_backend
def test_a_mask_of_keras_is_passed_on(rng):
    ids = np.array([[3, 4, 0, 0], [1, 2, 5, 0]])
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(6, D, mask_zero=True)(inputs)
    model = keras.Model(inputs, made(rng)(x))
    y = to_numpy(model(ids))
    assert (y[ids == 0] == 0).all()
    shorter = to_numpy(model(ids[:, :3]))
    np.testing.assert_allclose(y[:, :3], shorter, atol=1e-5)


def test_gradients_reach_every_weight_from_every_token(rng):
    """The gradient of the scale equals the difference quotient."""
    layer = made(rng)
    x = draw(rng, B, S, D)
    y, gradients = layer_gradients(layer, x)
    assert all(np.abs(g).max() > 0 for g in gradients.values())
    assert (np.abs(gradients["inputs"]).max(-1) > 0).all()
    weights = upstream(y.shape).astype("float64")

    def total(scale):
        layer.scale.assign([scale])
        each = [by_hand(layer, sequence.astype("float64")) for sequence in x]
        return (weights * np.stack(each)).sum()

    start, step = float(to_numpy(layer.scale)[0]), 1e-3
    slope = (total(start + step) - total(start - step)) / (2 * step)
    np.testing.assert_allclose(gradients["scale"], [slope], rtol=5e-3)


def test_one_expert_of_one_slot_gives_every_token_the_same(rng):
    """The softmax over one slot is 1, so every token gets the slot's output."""
    layer = SoftMoE(1, F, normalize_logits=False)
    x = draw(rng, 1, S, D)
    y = to_numpy(layer(x))
    np.testing.assert_allclose(y, np.broadcast_to(y[:, :1], y.shape), atol=1e-6)


def test_rows_without_a_sequence_axis_warn_once(rng):
    """The rows are one sequence, so an output depends on the other rows."""
    layer = SoftMoE(E, F)
    x = draw(rng, 4, D)
    with pytest.warns(UserWarning, match="depends on the other rows") as caught:
        model = keras.Sequential([keras.Input((D,)), layer])
        whole = to_numpy(model(x))
    about = [w for w in caught if "SoftMoE" in str(w.message)]
    assert len(about) == 1
    assert np.abs(to_numpy(model(x[:2])) - whole[:2]).max() > 1e-4
    keras.models.clone_model(model)


def test_weights_sum_to_one():
    """Equal logits have equal weights over tokens and over slots."""
    mask = np.array([[True, True, False]])
    dispatch, combine = routing.soft_weights(
        np.zeros((1, 3, 4), "float32"), mask
    )
    wanted = np.array([[[0.5] * 4, [0.5] * 4, [0.0] * 4]])
    np.testing.assert_allclose(to_numpy(dispatch), wanted, atol=1e-6)
    np.testing.assert_allclose(to_numpy(combine), wanted / 2, atol=1e-6)


def test_normalized_logits_do_not_depend_on_the_width(rng):
    """The scale is an upper bound of the logits, for any norm of the tokens."""
    tokens = 1000 * draw(rng, 1, S, 64)
    logits = to_numpy(
        routing.soft_slot_logits(
            tokens, draw(rng, 64, 3), np.array([2.0], "float32")
        )
    )
    assert np.abs(logits).max() <= 2.0 + 1e-5
    zeros = routing.soft_slot_logits(
        np.zeros((1, S, 3), "float32"), np.zeros((3, 2), "float32"), 1.0
    )
    np.testing.assert_array_equal(to_numpy(zeros), 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, F), "`num_experts` must be an integer above 0"),
        ((E, 0), "`intermediate_dim` must be an integer above 0"),
        ((E, F, 0), "`slots_per_expert` must be an integer above 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftMoE(*arguments)


def test_inputs_that_do_not_fit(rng):
    layer = made(rng)
    with pytest.raises(ValueError, match="must have 4 as last dimension"):
        layer(draw(rng, B, S, D + 1))
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        layer(draw(rng, B, S, D), mask=np.ones((B, S + 1), bool))
