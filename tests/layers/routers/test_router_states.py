"""Test routers that read other states than the experts compute."""

import keras
import numpy as np
import pytest
from backend import draw, to_numpy, value_and_gradients
from mixture_oracle import expert, mixture, randomize, softmax

import keras_moe
from keras_moe import MoEBlock, Router, TransformerEncoderBlock
from keras_moe.compress import merge_experts, prune_experts, to_dense

E, D, WIDTH = 4, 6, 9  # the states are wider than the inputs
SHAPES = [(3, 5, D), (3, 5, WIDTH)]

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def block_of_states(top_k=2, router=Router, **options):
    router = router(E, router_inputs_dim=WIDTH, top_k=top_k, name="router")
    return MoEBlock(E, 7, router=router, **options)


def model_of_states(block):
    inputs = [keras.Input(shape[1:]) for shape in SHAPES]
    outputs = block(inputs[0], router_inputs=inputs[1])
    return keras.Model(inputs, outputs)


def by_hand(block, x, states):
    """Return the sum of the two best experts of the states, for `(T, .)`."""
    logits = states @ to_numpy(block.router.kernel)
    chosen = logits >= np.sort(logits)[:, [-2]]
    weights = softmax(np.where(chosen, logits, -np.inf))
    return mixture([expert(block.experts, e, x) for e in range(E)], weights)


@pytest.mark.every_backend
def test_values_gradients_and_files(rng, tmp_path):
    x, states = (draw(rng, *shape) for shape in SHAPES)
    block = block_of_states()
    model = model_of_states(block)
    randomize(block, rng)
    y, gradients = value_and_gradients(
        lambda x, s: block(x, router_inputs=s), x, states
    )
    wanted = by_hand(block, x.reshape(15, D), states.reshape(15, WIDTH))
    np.testing.assert_allclose(y.reshape(15, D), wanted, rtol=1e-4, atol=1e-4)
    # Moving the router's inputs and the experts' inputs gives both gradients.
    both = MoEBlock(
        E, router=Router(E, router_inputs_dim=D), experts=block.experts
    )
    one = MoEBlock(E, router=Router(E), experts=block.experts)
    for other in (both, one):
        other.build((None, None, D))
        other.router.kernel.assign(draw(np.random.default_rng(1), D, E))
    y, split = value_and_gradients(lambda x, s: both(x, router_inputs=s), x, x)
    same, whole = value_and_gradients(one, x)
    np.testing.assert_allclose(y, same, atol=1e-6)
    np.testing.assert_allclose(sum(split), whole[0], rtol=1e-4, atol=1e-4)
    assert all(np.abs(g).max() > 1e-3 for g in gradients + split)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        to_numpy(again([x, states])), to_numpy(model([x, states]))
    )


def test_padding_replay_and_half_precision(rng):
    x, states = (draw(rng, *shape) for shape in SHAPES)
    mask = np.ones((3, 5), bool)
    mask[1, 2:] = False
    block = block_of_states(capacity_factor=1.0)
    y, first = block(x, mask=mask, router_inputs=states, return_assignment=True)
    x[~mask], states[~mask] = np.nan, np.nan
    again = block(x, mask=mask, router_inputs=states, replay=first)
    np.testing.assert_array_equal(to_numpy(again), to_numpy(y))
    half = block_of_states(dtype="mixed_bfloat16")
    half(x, router_inputs=states)
    for one, other in zip(half.weights, block.weights, strict=True):
        one.assign(to_numpy(other))
    outputs = to_numpy(half(x, mask=mask, router_inputs=states))
    close = np.abs(outputs - to_numpy(y)).max(axis=-1) < 0.05
    assert close.mean() > 0.8  # rounded states may choose other experts


def test_an_example_has_one_state(rng):
    x, states = draw(rng, 3, 5, D), draw(rng, 3, WIDTH)
    block = block_of_states(level="example")
    _, kept = block(x, router_inputs=states, return_assignment=True)
    logits = states @ to_numpy(block.router.kernel)
    np.testing.assert_allclose(
        to_numpy(kept.router_logits), logits, rtol=1e-4, atol=1e-5
    )


def test_changed_models(rng):
    x, states = (draw(rng, *shape) for shape in SHAPES)
    model = model_of_states(block_of_states(top_k=1))
    smaller = prune_experts(model, 2, by="weight")
    assert smaller([x, states]).shape == (3, 5, D)
    merged = merge_experts(model, E, [x, states])
    np.testing.assert_allclose(
        to_numpy(merged([x, states])), to_numpy(model([x, states])), atol=1e-6
    )
    with pytest.raises(ValueError, match="`model` must .*Received"):
        to_dense(model)
    layer = TransformerEncoderBlock(2, block_of_states())
    assert layer(x, router_inputs=states).shape == (3, 5, D)


@pytest.mark.parametrize(
    "name", [n for n in keras_moe.__all__ if n.endswith("Router")]
)
def test_every_learned_router_has_the_option(name, rng):
    """The others have router inputs of their own, or read no tokens."""
    cls = getattr(keras_moe, name)
    options = {
        "HierarchicalRouter": {"num_groups": 2},
        "ExpertChoiceRouter": {"bidirectional": True},
    }.get(name, {})
    if name in ("ModalityRouter", "PathwayRouter", "HashRouter", "RuleRouter"):
        with pytest.raises(ValueError, match="`router_inputs_dim` must .*Rec"):
            cls(E, router_inputs_dim=WIDTH, **options)
        return
    router = cls(E, router_inputs_dim=WIDTH, **options)
    x, states = (draw(rng, *shape) for shape in SHAPES)
    assignment = router(x, router_inputs=states)
    alone = cls.from_config({**router.get_config(), "router_inputs_dim": None})
    alone(states)
    for one, other in zip(alone.weights, router.weights, strict=True):
        one.assign(to_numpy(other))
    np.testing.assert_array_equal(
        to_numpy(alone(states).router_logits),
        to_numpy(assignment.router_logits),
    )


def test_states_that_do_not_fit(rng):
    x, states = (draw(rng, *shape) for shape in SHAPES)
    block = block_of_states()
    for wrong in (None, x, states[:2], states[:, 0], states.astype("int32")):
        with pytest.raises(ValueError, match="`router_inputs` must .*Received"):
            block(x, router_inputs=wrong)
    symbolic = keras.Input((5, D))
    for wrong in (None, keras.Input((5, D))):
        with pytest.raises(ValueError, match="`router_inputs` must .*Received"):
            block(symbolic, router_inputs=wrong)
    with pytest.raises(ValueError, match="`router` must not read .*Received"):
        keras_moe.models.MoELanguageModel(
            9,
            max_length=5,
            num_layers=1,
            hidden_dim=D,
            num_heads=1,
            intermediate_dim=4,
            num_experts=E,
            router=Router(E, router_inputs_dim=WIDTH),
        )
