"""Test that a pruned model equals the model without the pruned experts."""

import keras
import numpy as np
import pytest
import router_zoo
from compress_cases import (
    WIDTH,
    assert_as_if_switched_off,
    block_model,
    draw,
    kept_experts,
    outputs_of,
    randomize,
    to_numpy,
)
from model_zoo import MODELS, batch_of

import keras_moe
from keras_moe import MoEBlock, Router
from keras_moe.compress import prune_experts
from keras_moe.compress.changeable_blocks import count_kept
from keras_moe.compress.smaller_routers import choose
from keras_moe.model_surgery.batches import batches_of

# `make test` runs these tests on one backend, except for `every_backend` ones.
pytestmark = pytest.mark.one_backend

LEARNED = [
    name
    for name in router_zoo.ROUTERS
    if not name.startswith(("Hash", "Rule"))
    # ExpertChoiceRouter gives an expert C = ceil(c T / E) tokens, which is more
    # for fewer experts. The inputs of PathwayRouter have their own test below.
    and name not in ("ExpertChoiceRouter", "PathwayRouter")
]


@pytest.mark.every_backend
def test_pruning_experts_that_are_never_chosen_changes_nothing(rng):
    """Experts 0 and 2 have a bias of -100, so experts 1 and 3 get all tokens.

    There are more than 8 rows per expert before pruning, too, because JAX
    computes fewer rows with another formulation that sums in another order.
    """
    model = block_model(MoEBlock(4, 6, router=Router(4, 2, use_bias=True)))
    block = model.layers[-1]
    randomize(block, rng)
    block.router.bias.assign([-100.0, 0.0, -100.0, 0.0])
    x = draw(rng, 9, 3, WIDTH)
    before = [to_numpy(w).copy() for w in model.weights]
    expected = outputs_of(model, x)
    pruned = prune_experts(model, keep=0.5, data=x)
    np.testing.assert_array_equal(outputs_of(pruned, x), expected)
    smaller = pruned.layers[-1]
    assert smaller.num_experts == 2 and block.num_experts == 4
    for name in ("up_kernel", "up_bias", "down_kernel", "down_bias"):
        old, new = (getattr(b.experts, name) for b in (block, smaller))
        np.testing.assert_array_equal(to_numpy(new), to_numpy(old)[[1, 3]])
    np.testing.assert_array_equal(
        to_numpy(smaller.router.kernel),
        to_numpy(block.router.kernel)[:, [1, 3]],
    )
    for one, other in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(to_numpy(one), other)


@pytest.mark.parametrize("name", LEARNED)
def test_every_router_that_learns(name, rng):
    router = router_zoo.ROUTERS[name]()
    model = router_zoo.model_of(router)
    block = model.get_layer("block")
    randomize(block, rng)
    if getattr(router, "expert_bias", False):
        bias = router.expert_bias_weight
        bias.assign(0.1 * draw(rng, *bias.shape))
    x = [draw(rng, 6, 5, router_zoo.D)]
    ids = router_zoo.router_inputs_of(router, (6, 5))
    x += [] if ids is None else [ids]
    keep = 3 if router.top_k <= 3 and name[:5] != "Hiera" else 4
    if name.startswith("Hierarchical"):
        with pytest.raises(ValueError, match="multiple of.*num_groups"):
            prune_experts(model, keep, by="weight")
        return
    pruned = prune_experts(model, keep, by="saliency", data=x)
    assert_as_if_switched_off(model, pruned, x)


def test_experts_in_two_stages(rng):
    """Three groups of two keep one expert each; the groups' columns stay."""
    model = block_model(
        keras_moe.HierarchicalMoE(3, 6, 4, top_k_groups=2, top_k=2)
    )
    block = model.layers[-1]
    norms = [1.0, 5.0, 4.0, 3.0, 2.0, 6.0]
    for weight in block.experts.weights:
        scale = np.reshape(norms, (6,) + (1,) * (len(weight.shape) - 1))
        weight.assign(np.ones(weight.shape) * scale)
    pruned = prune_experts(model, 3, by="weight")
    smaller = pruned.layers[-1]
    assert type(smaller) is keras_moe.HierarchicalMoE
    np.testing.assert_array_equal(
        to_numpy(smaller.router.kernel),
        to_numpy(block.router.kernel)[:, [1, 2, 5, 6, 7, 8]],
    )
    assert outputs_of(pruned, draw(rng, 2, 3, WIDTH)).shape == (2, 3, WIDTH)


def test_blocks_that_pass_on_their_logits_keep_the_same_experts(rng):
    inputs = keras.Input((3, WIDTH))
    x, chosen = MoEBlock(4, 6, name="first")(inputs, return_assignment=True)
    router = keras_moe.PathwayRouter(4, pathway_initializer="glorot_uniform")
    outputs = MoEBlock(4, 6, router=router, name="second")(
        x, router_inputs=chosen.router_logits
    )
    model = keras.Model(inputs, outputs)
    loads = [0.1, 0.2, 0.3, 0.4], [0.4, 0.0, 0.6, 0.0]  # 0.5, 0.2, 0.9, 0.4
    for name, load in zip(("first", "second"), loads, strict=True):
        statistics = model.get_layer(name).statistics
        statistics.expert_load.assign(load)
        statistics.num_batches.assign([1.0])
    pruned = prune_experts(model, 2)
    old, new = (m.get_layer("second").router for m in (model, pruned))
    np.testing.assert_array_equal(
        to_numpy(new.pathway_kernel),
        to_numpy(old.pathway_kernel)[np.ix_([0, 2], [0, 2])],
    )
    first = pruned.get_layer("first")
    kept = kept_experts(model.get_layer("first").experts, first.experts)
    assert kept == [0, 2]
    assert outputs_of(pruned, draw(rng, 2, 3, WIDTH)).shape == (2, 3, WIDTH)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_build_their_blocks(name, rng, tmp_path):
    model = MODELS[name](num_layers=2, moe_every=2, shared_expert_dim=4)
    x, _ = batch_of(name, rng, samples=4)
    pruned = prune_experts(model, 2, by="weight")
    assert type(pruned) is type(model)
    assert {block.num_experts for block in pruned.moe_blocks} == {2}
    pruned.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = outputs_of(pruned, x)
    np.testing.assert_array_equal(outputs_of(again, x), expected)
    assert_as_if_switched_off(model, pruned, x)
    if name == "MoELanguageModel":
        assert pruned.generate(x[:1, :2], max_length=3).shape == (1, 3)


def test_the_saliency_is_that_of_reap(rng):
    """REAP's saliency is the mean of weight times norm over experts' tokens."""
    model = block_model(MoEBlock(4, 6, top_k=2, activation="relu"))
    block = model.layers[-1]
    x = draw(rng, 5, 3, WIDTH)
    tokens = x.reshape(-1, WIDTH)
    logits = tokens @ to_numpy(block.router.kernel)
    up, down = (to_numpy(w) for w in block.experts.ffn_weights()[:2])
    total, count = np.zeros(4), np.zeros(4)
    for token, row in zip(tokens, logits, strict=True):
        best = np.argsort(-row)[:2]
        weights = np.exp(row[best]) / np.exp(row[best]).sum()
        for e, weight in zip(best, weights, strict=True):
            output = np.maximum(token @ up[e], 0) @ down[e]
            total[e] += weight * np.linalg.norm(output)
            count[e] += 1
    expected = sorted(np.argsort(-total / count)[:3])
    pruned = prune_experts(model, 3, by="saliency", data=x)
    assert kept_experts(block.experts, pruned.layers[-1].experts) == expected
    by_load = prune_experts(model, 3, data=x).layers[-1]
    expected = sorted(np.argsort(-count, kind="stable")[:3])
    assert kept_experts(block.experts, by_load.experts) == expected


def test_by_load_in_training_and_disabled_experts(rng):
    """Expert 3 has the largest load, but is disabled."""
    model = block_model()
    block = model.layers[-1]
    block.statistics.expert_load.assign([0.1, 0.25, 0.2, 0.45])
    block.statistics.num_batches.assign([3.0])
    block.disable_experts([3])
    smaller = prune_experts(model, 3).layers[-1]
    assert kept_experts(block.experts, smaller.experts) == [0, 1, 2]
    assert smaller.router.disabled_experts == []
    assert to_numpy(smaller.statistics.num_batches).tolist() == [0]


def test_experts_of_any_kind(rng):
    """A mixture of models keeps the layers with the largest weights."""
    experts = [keras.layers.Dense(2, name=f"expert_{e}") for e in range(3)]
    inputs = keras.Input((WIDTH,))
    model = keras.Model(
        inputs, keras_moe.MixtureOfModels(experts, top_k=1, name="mix")(inputs)
    )
    x = draw(rng, 6, WIDTH)
    for e, expert in enumerate(experts):
        expert.kernel.assign(np.full((WIDTH, 2), [3.0, 1.0, 2.0][e]))
    pruned = prune_experts(model, 2, by="weight")
    names = [layer.name for layer in pruned.get_layer("mix").experts.layers]
    assert names == ["expert_0", "expert_2"]
    mix = model.get_layer("mix")
    mix.disable_experts([1])
    np.testing.assert_allclose(
        outputs_of(pruned, x), outputs_of(model, x), rtol=1e-5
    )


def test_a_pruned_model_can_be_trained(rng):
    """A pruned model is not compiled, and its loss falls in training."""
    model = keras.Sequential(
        [keras.Input((3, WIDTH)), MoEBlock(4, 6), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    x = draw(rng, 16, 3, WIDTH)
    pruned = prune_experts(model, 2, by="weight")
    assert type(pruned) is keras.Sequential and not pruned.compiled
    pruned.compile(keras.optimizers.Adam(0.02), "mse")
    losses = pruned.fit(x, x[..., :1], batch_size=16, epochs=8, verbose=0)
    losses = losses.history["loss"]
    assert losses[-1] < 0.9 * losses[0]


def test_blocks_of_models_inside_models(rng):
    """The block is in a Sequential inside an Ensemble."""
    layers = [keras.Input((3, WIDTH)), MoEBlock(4, 6), keras.layers.Dense(2)]
    member = keras.Sequential(layers)
    other = block_model(keras.layers.Dense(2))
    ensemble = keras_moe.Ensemble([member, other])
    x = draw(rng, 4, 3, WIDTH)
    pruned = prune_experts(ensemble, 2, by="saliency", data=x)
    assert type(pruned) is keras_moe.Ensemble
    assert_as_if_switched_off(ensemble, pruned, x)


@keras.saving.register_keras_serializable(package="tests")
class OwnModel(keras.Model):
    """A user's model that takes its block as an argument."""

    def __init__(self, moe, **kwargs):
        super().__init__(**kwargs)
        self.moe = moe

    def build(self, input_shape):
        if not self.moe.built:
            self.moe.build(input_shape)

    def call(self, inputs):
        return self.moe(inputs)

    def get_config(self):
        moe = keras.saving.serialize_keras_object(self.moe)
        return {**super().get_config(), "moe": moe}

    @classmethod
    def from_config(cls, config):
        moe = keras.saving.deserialize_keras_object(config["moe"])
        return cls(**{**config, "moe": moe})


def test_a_subclass_of_the_users(rng):
    model = OwnModel(MoEBlock(4, 6))
    x = draw(rng, 4, 3, WIDTH)
    model(x)
    pruned = prune_experts(model, 2, by="weight")
    assert type(pruned) is OwnModel
    assert_as_if_switched_off(model, pruned, x)


def test_the_best_of_each_group():
    scores = np.array([1.0, 3.0, 2.0, 9.0, 8.0, 8.0])
    assert choose(scores, 3, 1).tolist() == [3, 4, 5]
    assert choose(scores, 2, 1).tolist() == [3, 4]  # the first of equal ones
    assert choose(scores, 4, 2).tolist() == [1, 2, 3, 4]


def test_the_number_of_experts_that_stay():
    kept = [count_kept(keep, 6) for keep in (1, 6, 0.5, 0.01, 1.0, 0.6)]
    assert kept == [1, 6, 3, 1, 6, 4]


def test_the_forms_of_data(rng):
    x = draw(rng, 40, 3)
    sizes = [batch.shape[0] for batch in batches_of(x)]
    assert sizes == [32, 8]
    both = next(iter(batches_of({"a": x, "b": x[:, :1]})))
    assert tuple(both["b"].shape) == (32, 1)
    assert len(next(iter(batches_of([x, x])))) == 2
    given = [(x, x[:, 0]), (x, x[:, 0], x[:, 0])]  # batches as in `fit`
    assert [tuple(b.shape) for b in batches_of(given)] == [(40, 3)] * 2

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return x[index : index + 4], x[:4, 0]

    assert [tuple(b.shape) for b in batches_of(Batches())] == [(4, 3)] * 2
    pairs = ((x[:5], x[:5, 0]) for _ in range(3))
    assert [tuple(b.shape) for b in batches_of(pairs)] == [(5, 3)] * 3
