"""A router that claims to be causal lets no token see a later one."""

import numpy as np
import pytest
from backend import to_numpy
from keras import ops
from router_zoo import ROUTERS, E

import keras_moe
from keras_moe import AttentionRouter, RuleRouter
from keras_moe.models import MoELanguageModel

CAUSAL = {
    **{n: make for n, make in ROUTERS.items() if make().causal},
    "AttentionRouter causal": lambda: AttentionRouter(E, causal=True),
}
OTHERS = {n: make for n, make in ROUTERS.items() if n not in CAUSAL}
PLACE = 3  # of the token that is changed


def language_model(router, **options):
    return MoELanguageModel(
        vocabulary_size=E,  # ids are experts' numbers for a RuleRouter
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


def test_who_claims_it():
    assert set(OTHERS) == {
        "AttentionRouter",  # reads the whole sequence
        "ExpertChoiceRouter",  # tokens compete
        "HashRouter round robin",  # by the place in the batch
        "SinkhornRouter",  # tokens compete in training
    }
    assert not keras_moe.layers.BaseRouter(3).causal
    assert not RuleRouter(3, rule=lambda inputs, ids: ids).causal

    def rule(inputs, ids):
        return ids

    rule.causal = True
    assert RuleRouter(3, rule=rule).causal


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_earlier_logit(name, training, rng):
    """What is drawn at random is drawn again: the seeds are put back."""
    ids = rng.integers(1, E, (2, 5)).astype("int32")
    changed = ids.copy()
    changed[:, PLACE] = ids[:, PLACE] % (E - 1) + 1
    model = language_model(CAUSAL[name]())
    before = [to_numpy(v) for v in model.non_trainable_variables]
    logits = []
    for tokens in (ids, changed):
        for variable, value in zip(
            model.non_trainable_variables, before, strict=True
        ):
            variable.assign(value)
        tokens = ops.convert_to_tensor(tokens)
        logits.append(to_numpy(model(tokens, training=training)))
    one, other = logits
    np.testing.assert_allclose(one[:, :PLACE], other[:, :PLACE], atol=1e-6)
    assert np.abs(one[:, PLACE:] - other[:, PLACE:]).max() > 1e-4


@pytest.mark.parametrize("name", OTHERS)
def test_others_go_into_no_causal_model(name):
    with pytest.raises(ValueError, match="does not look at later tokens"):
        language_model(OTHERS[name]())


def test_capacity_by_position_is_causal_in_training(rng):
    """Tokens before the changed one keep their places."""
    ids = rng.integers(1, E, (1, 5)).astype("int32")
    changed = ids.copy()
    changed[:, PLACE:] = ids[:, PLACE:] % (E - 1) + 1
    model = language_model(None, capacity_factor=0.6)
    one, other = (
        to_numpy(model(ops.convert_to_tensor(x), training=True))
        for x in (ids, changed)
    )
    np.testing.assert_allclose(one[:, :PLACE], other[:, :PLACE], atol=1e-6)
