"""Bad arguments and inputs of the routers raise an error with the remedy."""

import keras
import numpy as np
import pytest
from backend import draw
from router_zoo import D, E

import keras_moe
from keras_moe import MoEBlock

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend


def symbolic(layer, *shape, **options):
    """Call a layer on an `Input`, as a functional model does."""
    return layer(keras.Input(shape), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: symbolic(MoEBlock(4, 6, router=keras_moe.HashRouter(4)), 5, 8),
        lambda: symbolic(
            MoEBlock(4, 6, router=keras_moe.RuleRouter(4)),
            5,
            8,
            return_assignment=True,
        ),
        lambda: symbolic(
            keras_moe.TransformerEncoderBlock(
                2, MoEBlock(4, 6, router=keras_moe.PathwayRouter(4))
            ),
            5,
            8,
        ),
        lambda: symbolic(
            keras_moe.TransformerDecoderBlock(
                2, MoEBlock(4, 6, router=keras_moe.HashRouter(4))
            ),
            5,
            8,
        ),
        lambda: symbolic(
            keras_moe.MixtureOfModels(
                [keras.layers.Dense(2), keras.layers.Dense(2)],
                keras_moe.RuleRouter(2),
            ),
            8,
        ),
    ],
)
def test_missing_router_inputs_fail_on_an_input(make):
    """The error is raised when the model is built, not when it predicts."""
    with pytest.raises(ValueError, match="`router_inputs` must be given"):
        make()


def test_router_inputs_that_are_missing_or_lost(rng):
    x = draw(rng, 3, D)
    with pytest.raises(ValueError, match="must be given: HashRouter"):
        MoEBlock(E, 12, router=keras_moe.HashRouter(E))(x)
    with pytest.raises(ValueError, match="must be left out: Router"):
        MoEBlock(E, 12)(x, router_inputs=np.zeros(3, "int32"))


@pytest.mark.parametrize(
    "ids", [np.zeros(3, "float32"), np.zeros((4,), "int32")]
)
def test_router_inputs_that_do_not_fit(rng, ids):
    with pytest.raises(ValueError, match="`router_inputs` must be integers"):
        keras_moe.HashRouter(E)(draw(rng, 3, D), router_inputs=ids)


def test_a_replay_that_does_not_fit(rng):
    block = MoEBlock(E, 12)
    _, recorded = block(draw(rng, 3, D), return_assignment=True)
    with pytest.raises(ValueError, match="of 3 tokens and 6 experts, for 4"):
        block(draw(rng, 4, D), replay=recorded)
    with pytest.raises(ValueError, match="for 3 and 5"):
        MoEBlock(5, 12)(draw(rng, 3, D), replay=recorded)
    with pytest.raises(ValueError, match="must be an Assignment"):
        block(draw(rng, 3, D), replay=recorded.expert_index)


BAD = [
    (lambda: keras_moe.Router(6, num_groups=4), "num_groups"),
    (lambda: keras_moe.Router(6, num_groups=2, top_k_groups=3), "top_k_groups"),
    (lambda: keras_moe.Router(6, 3, num_groups=3), "top_k"),
    (lambda: keras_moe.Router(6, num_null_experts=-1), "num_null_experts"),
    (
        lambda: keras_moe.Router(6, num_null_experts=1, num_groups=2),
        "num_null_experts",
    ),
    (
        lambda: keras_moe.Router(6, routed_scaling_factor=0),
        "routed_scaling_factor",
    ),
    (lambda: keras_moe.Router(6, expert_bias_step=-1), "expert_bias_step"),
    (lambda: keras_moe.Router(6, group_score="sum"), "group_score"),
    (lambda: keras_moe.Router(6, null_outputs="zero"), "null_outputs"),
    (lambda: keras_moe.Router(6, norm_epsilon=0), "norm_epsilon"),
    (lambda: keras_moe.Router(6, noise_std=-1), "noise_std"),
    (lambda: keras_moe.Router(6, logit_softcap=-1), "logit_softcap"),
    (lambda: keras_moe.Router(6, expert_dropout=1), "expert_dropout"),
    (lambda: keras_moe.SwitchRouter(6, jitter=1), "jitter"),
    (lambda: keras_moe.NoisyTopKRouter(6, load_weight=-1), "load_weight"),
    (
        lambda: keras_moe.NoisyTopKRouter(6, importance_weight=None),
        "importance_weight",
    ),
    (lambda: keras_moe.GShardRouter(6, "never"), "second_expert"),
    (lambda: keras_moe.GShardRouter(6, threshold=1.5), "threshold"),
    (lambda: keras_moe.GShardRouter(1), "top_k"),
    (lambda: keras_moe.ExpertChoiceRouter(6, 7), "experts_per_token"),
    (lambda: keras_moe.SinkhornRouter(6, num_iterations=0), "num_iterations"),
    (lambda: keras_moe.CosineRouter(6, temperature=0), "temperature"),
    (lambda: keras_moe.CosineRouter(6, routing_dim=0), "routing_dim"),
    (lambda: keras_moe.AttentionRouter(6, routing_dim=0.5), "routing_dim"),
    (lambda: keras_moe.HashRouter(6, method="md5"), "method"),
    (lambda: keras_moe.HashRouter(6, 7), "top_k"),
    (lambda: keras_moe.RuleRouter(6, rule="even"), "rule"),
    (lambda: keras_moe.RuleRouter(6, default_expert=6), "default_expert"),
    (lambda: keras_moe.ReLURouter(6, max_experts=1), "max_experts"),
    (lambda: keras_moe.ReLURouter(6, l1_growth=1), "l1_growth"),
    (lambda: keras_moe.ReLURouter(6, l1_start=0), "l1_start"),
    (lambda: keras_moe.SparseMixerRouter(1), "top_k"),
    (lambda: keras_moe.SparseMixerRouter(6, margin=-1), "margin"),
    (lambda: keras_moe.TopPRouter(6, top_p=0), "top_p"),
    (lambda: keras_moe.TopPRouter(6, top_k=7), "top_k"),
    (lambda: keras_moe.TopPRouter(6, entropy_weight=-1), "entropy_weight"),
    (lambda: MoEBlock(6, 8, load_balancing="none"), "load_balancing"),
    (
        lambda: MoEBlock(6, 8, load_balancing_weight=-1),
        "load_balancing_weight",
    ),
]


@pytest.mark.parametrize("make, name", BAD)
def test_bad_arguments(make, name):
    with pytest.raises(ValueError, match=f"^`{name}` must.*Received: "):
        make()
