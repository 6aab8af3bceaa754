"""Test the errors for models and arguments that cannot be compressed."""

import sys

import keras
import numpy as np
import pytest
from compress_cases import WIDTH, block_model, draw

import keras_moe
from keras_moe import HashRouter, MoEBlock, Router, SoftMoE
from keras_moe.compress import (
    merge_experts,
    prune_experts,
    prune_weights,
    to_dense,
)

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

WAYS = {
    "prune_experts": lambda m: prune_experts(m, 1, by="weight"),
    "merge_experts": lambda m: merge_experts(m, 1, np.zeros((1, 3, WIDTH))),
    "prune_weights": lambda m: prune_weights(m, 0.5),
    "to_dense": to_dense,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize(
    "run, message",
    [
        (lambda m: prune_experts(m, 0), "`keep` must"),
        (lambda m: prune_experts(m, 5), "`keep` must"),
        (lambda m: prune_experts(m, 0.0), "`keep` must"),
        (lambda m: prune_experts(m, True), "`keep` must"),
        (lambda m: prune_experts(m, "half"), "`keep` must"),
        (lambda m: prune_experts(m, 1), "must leave at least `top_k`"),
        (lambda m: prune_experts(m, 2, by="luck"), "`by` must"),
        (lambda m: prune_experts(m, 2), "`data` must be given.*not trained"),
        (lambda m: prune_experts(m, 2, "saliency"), "`data` must be given"),
        (lambda m: prune_experts(m, 2, data=7), "`data` must be arrays"),
        (lambda m: prune_experts(m, 2, data=[]), "`data` must hold"),
        (lambda m: merge_experts(m, 2), "`data` must be given"),
        (lambda m: merge_experts(m, 9, np.ones(2)), "`keep` must"),
        (lambda m: merge_experts(m, 2, np.ones(2), "luck"), "`by` must"),
        (lambda m: prune_weights(m, 1.0), "`sparsity` must"),
        (lambda m: prune_weights(m, 0.5, "rows"), "`granularity` must"),
        (lambda m: to_dense(m, "luck"), "`by` must"),
        (lambda m: to_dense(m, "load"), "`data` must be given"),
    ],
)
def test_bad_arguments(run, message):
    with pytest.raises(ValueError, match=f"(?s)(?=.*Received).*{message}"):
        run(block_model())


@every_way
def test_arguments_that_are_not_built_models_with_experts(way):
    for model in (MoEBlock(4, 6), keras.Sequential([MoEBlock(4, 6)])):
        with pytest.raises(ValueError, match="`model` must be a built.*Rec"):
            way(model)
    with pytest.raises(ValueError, match="`model` must .*Received"):
        way(block_model(keras.layers.Dense(WIDTH)))
    soft = block_model(SoftMoE(2, 6))
    if way is not WAYS["prune_weights"]:  # it prunes the experts of SoftMoE
        with pytest.raises(ValueError, match="must contain.*Received"):
            way(soft)


@every_way
def test_experts_that_blocks_share(way):
    inputs = keras.Input((3, WIDTH))
    first = MoEBlock(4, 6, top_k=1)
    second = MoEBlock(4, top_k=1, share_experts_with=first)
    model = keras.Model(inputs, second(first(inputs)))
    with pytest.raises(ValueError, match="of its own for each block.*Received"):
        way(model)


@pytest.mark.parametrize(
    "router, message",
    [
        (lambda: HashRouter(4, 1, "round_robin"), "weights per expert"),
        (lambda: Router(4, 1, num_groups=2, top_k_groups=1), "multiple of"),
    ],
)
def test_routers_that_cannot_choose_among_fewer(router, message):
    model = block_model(MoEBlock(4, 6, router=router()))
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        prune_experts(model, 3, by="weight")


def test_logits_from_outside_cannot_be_fewer():
    inputs = keras.Input((3, WIDTH)), keras.Input((3, 4))
    block = MoEBlock(4, 6, router=keras_moe.PathwayRouter(4))
    model = keras.Model(inputs, block(inputs[0], router_inputs=inputs[1]))
    with pytest.raises(ValueError, match="block whose logits.*Received"):
        prune_experts(model, 2, by="weight")


def test_a_modality_keeps_as_many_experts_as_a_token_needs(rng):
    inputs = keras.Input((3, WIDTH)), keras.Input((3,), dtype="int32")
    router = keras_moe.ModalityRouter(
        4, 2, top_k=1, experts_of_modality=[[0, 1], [2, 3]]
    )
    block = MoEBlock(4, 6, router=router)
    model = keras.Model(inputs, block(inputs[0], router_inputs=inputs[1]))
    ids = np.zeros((2, 3), "int32")  # the other modality has no tokens
    with pytest.raises(ValueError, match="leave each modality.*Received"):
        prune_experts(model, 2, data=[draw(rng, 2, 3, WIDTH), ids])
    with pytest.raises(ValueError, match="without router inputs.*Received"):
        to_dense(model)


def test_experts_of_any_kind_have_no_mean(rng):
    experts = [keras.layers.Dense(WIDTH), keras.layers.Identity()]
    model = block_model(MoEBlock(2, top_k=1, experts=experts))
    for way in ("merge_experts", "to_dense"):
        with pytest.raises(ValueError, match=f"`{way}` needs.*Received"):
            WAYS[way](model)
    inputs = keras.Input((WIDTH,))
    dense = keras_moe.MixtureOfModels([keras.layers.Dense(2) for _ in "ab"])
    model = keras.Model(inputs, dense(inputs))
    with pytest.raises(ValueError, match="`by` must be 'weight' if.*Rec"):
        prune_experts(model, 2, data=draw(rng, 2, WIDTH))


def test_a_model_is_merged_once(rng):
    x = draw(rng, 2, 3, WIDTH)
    merged = merge_experts(block_model(), 2, x)
    with pytest.raises(ValueError, match="must not be merged yet.*Received"):
        merge_experts(merged, 2, x)
    with pytest.raises(ValueError, match="weights per expert.*Received"):
        prune_experts(merged, 2, by="weight")


def test_without_scipy(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r'pip install "keras-moe\[compress'):
        merge_experts(block_model(), 2, draw(rng, 2, 3, WIDTH))


class Scaled(keras.layers.Layer):
    """A user's layer that is not registered."""

    def __init__(self, factor, activation=None):
        super().__init__()
        self.factor, self.activation = factor, activation

    def call(self, x):
        return self.factor * (
            x if self.activation is None else self.activation(x)
        )

    def get_config(self):
        return {"factor": self.factor, "activation": self.activation}


def test_layers_of_a_user(rng):
    """A class need not be registered; a function in its config must be."""
    inputs = keras.Input((3, WIDTH))
    model = keras.Model(inputs, Scaled(3)(MoEBlock(4, 6)(inputs)))
    pruned = prune_experts(model, 2, by="weight")
    assert type(pruned.layers[-1]) is Scaled
    assert pruned.layers[-1].factor == 3

    def identity(x):
        return x

    model = keras.Model(inputs, Scaled(3, identity)(MoEBlock(4, 6)(inputs)))
    with pytest.raises(ValueError, match="(?s)built by its config.*register"):
        prune_experts(model, 2, by="weight")
    assert "get_config" not in vars(model.layers[1])  # no patch remains
