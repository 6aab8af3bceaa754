"""Routers that are declared causal never use later tokens."""

import numpy as np
import pytest
from backend import BACKEND, draw, to_numpy
from keras import ops
from router_zoo import ROUTERS, D, E, router_inputs_of

import keras_moe
from keras_moe import (
    AttentionRouter,
    MoEBlock,
    RuleRouter,
    SoftMoE,
    TransformerDecoderBlock,
    kernels,
)
from keras_moe.models import MoELanguageModel

CAUSAL = {
    **{n: make for n, make in ROUTERS.items() if make().causal},
    "AttentionRouter causal": lambda **kw: AttentionRouter(
        E, causal=True, **kw
    ),
}
OTHERS = {n: make for n, make in ROUTERS.items() if n not in CAUSAL}
# If compiling is expensive, one router of each kind is tested, because the
# routers are the same `keras.ops` on every backend.
EXPENSIVE = BACKEND == "jax"
TESTED = ["GShardRouter", "HashRouter", "ReLURouter"] if EXPENSIVE else CAUSAL
TRAINING = [True] if EXPENSIVE else [False, True]
PLACE = 3  # position of the token that is changed


def language_model(router, **options):
    return MoELanguageModel(
        vocabulary_size=E,
        max_length=5,
        num_layers=1,
        hidden_dim=8,
        num_heads=2,
        intermediate_dim=6,
        num_experts=E,
        router=router,
        seed=1,
        **options,
    )


def test_which_routers_are_causal():
    assert set(OTHERS) == {
        "AttentionRouter",  # reads the whole sequence
        "ExpertChoiceRouter",  # tokens compete
        "HashRouter round robin",  # routes by the place in the batch
        "SinkhornRouter",  # tokens compete in training
    }
    assert not keras_moe.layers.BaseRouter(3).causal
    assert not RuleRouter(3, rule=lambda inputs, ids: ids).causal

    def rule(inputs, ids):
        return ids

    rule.causal = True
    assert RuleRouter(3, rule=rule).causal


@pytest.mark.parametrize("training", TRAINING)
@pytest.mark.parametrize("name", TESTED)
def test_a_later_token_changes_no_earlier_output(name, training, rng):
    """Restored seeds make both calls draw the same random numbers."""
    x = draw(rng, 2, 5, D)
    later = x.copy()
    later[:, PLACE] = draw(rng, 2, D)
    router = CAUSAL[name](seed=1)
    ids = router_inputs_of(router, (2, 5))
    takes_ids = ids is not None
    ids = ids if takes_ids else np.zeros((2, 5), "int32")
    later_ids = ids.copy()
    later_ids[:, PLACE] = (ids[:, PLACE] + 1) % E
    block = TransformerDecoderBlock(2, MoEBlock(E, 6, router=router))
    block.build((2, 5, D))

    def call(x, ids):
        own = {"router_inputs": ids} if takes_ids else {}
        return block(x, training=training, **own)

    run = kernels.compiled(call, block.variables) if EXPENSIVE else call
    state = [to_numpy(v) for v in block.non_trainable_variables]
    outputs = []
    for given in ((x, ids), (later, later_ids)):
        for variable, value in zip(
            block.non_trainable_variables, state, strict=True
        ):
            variable.assign(value)
        outputs.append(to_numpy(run(*map(ops.convert_to_tensor, given))))
    one, other = outputs
    np.testing.assert_allclose(one[:, :PLACE], other[:, :PLACE], atol=1e-6)
    assert (np.abs(one - other)[:, PLACE:].max(-1) > 1e-5).all()


@pytest.mark.parametrize("name", OTHERS)
def test_no_causal_model_accepts_other_routers(name):
    with pytest.raises(ValueError, match="must be causal"):
        language_model(OTHERS[name]())


def test_a_language_model_whose_experts_are_full_is_causal(rng):
    """In training, tokens before the changed ones keep their places."""
    ids = rng.integers(1, E, (1, 5)).astype("int32")
    changed = ids.copy()
    changed[:, PLACE:] = ids[:, PLACE:] % (E - 1) + 1
    model = language_model(None, capacity_factor=0.6)
    run = kernels.compiled(
        lambda ids: model(ids, training=True), model.variables
    )
    one, other = (
        to_numpy(run(ops.convert_to_tensor(x))) for x in (ids, changed)
    )
    np.testing.assert_allclose(one[:, :PLACE], other[:, :PLACE], atol=1e-6)
    assert np.abs(one - other)[:, PLACE:].max() > 1e-5


def test_no_causal_block_accepts_layers_that_mix_a_sequence():
    for moe in (SoftMoE(2, 4), MoEBlock(2, 4, level="example")):
        with pytest.raises(ValueError, match="must be causal"):
            TransformerDecoderBlock(2, moe)
