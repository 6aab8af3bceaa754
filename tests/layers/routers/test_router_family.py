"""Test what every router does."""

import inspect

import choose_elsewhere
import keras
import numpy as np
import pytest
from backend import BACKEND, draw, layer_gradients, to_numpy
from elsewhere import run_on
from paths import ROOT
from router_zoo import (
    NORMALIZED,
    ROUTERS,
    D,
    E,
    arrays,
    model_of,
    router_cases,
    router_inputs_of,
    symbolic_router_inputs,
)

import keras_moe
from keras_moe import MoEBlock

every_router = pytest.mark.parametrize("name", router_cases())
README = (ROOT / "README.md").read_text()


def block_of(router):
    return MoEBlock(E, 12, router=router, activation="gelu")


def test_the_readme_has_every_router_and_its_paper():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    names = [n for n in keras_moe.__all__ if n.endswith("Router")]
    for name in names:
        row = next(r for r in rows if r.startswith(f"| `{name}` |"))
        _, _, paper, guarantee, use, _ = row.split("|")
        assert all(cell.strip() for cell in (paper, guarantee, use))
        assert inspect.getdoc(getattr(keras_moe, name))
    assert {n.split()[0] for n in ROUTERS} == set(names)


class Subclassed(keras.Model):
    """A model that builds its block while its first `fit` is traced."""

    def __init__(self, router):
        super().__init__()
        self.block = block_of(router)
        self.head = keras.layers.Dense(1)

    def call(self, inputs, training=None):
        x, ids = inputs
        if self.block.router.router_inputs_use == "none":
            ids = None
        return self.head(self.block(x, training=training, router_inputs=ids))


def functional(block, length=5):
    """Return a functional model of a block, as users save it."""
    inputs = [keras.Input((length, D))]
    ids = symbolic_router_inputs(block.router, length)
    inputs += [] if ids is None else [ids]
    return keras.Model(inputs, block(inputs[0], router_inputs=ids))


@every_router
def test_it_is_built_by_fit_trains_saves_and_loads(name, rng, tmp_path):
    """The first `fit` builds the model, and no path is used twice.

    A second `fit` changes every trainable weight, and the loaded block
    predicts the same values as the saved one.
    """
    model = Subclassed(ROUTERS[name]())
    x, ids = draw(rng, 64, 5, D), rng.integers(0, E, (64, 5))
    if model.block.router.router_inputs_kind == "logits":
        ids = draw(rng, 64, 5, E)
    y = x.sum(2, keepdims=True)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit((x, ids), y, batch_size=32, verbose=0)
    paths = [w.path for w in model.weights]
    assert len(set(paths)) == len(paths)
    before = [to_numpy(w) for w in model.trainable_weights]
    model.fit((x, ids), y, batch_size=32, verbose=0)
    for was, weight in zip(before, model.trainable_weights, strict=True):
        assert np.isfinite(to_numpy(weight)).all()
        assert (to_numpy(weight) != was).any(), weight.path
    trained = functional(model.block)
    trained.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    inputs = [x, ids][: len(trained.inputs)]
    np.testing.assert_array_equal(
        again.predict(inputs, verbose=0), trained.predict(inputs, verbose=0)
    )


@pytest.mark.one_backend
@pytest.mark.fast
@every_router
def test_no_tokens(name):
    """An empty batch has empty outputs and finite losses."""
    block = block_of(ROUTERS[name]())
    block.build((None, D))
    ids = router_inputs_of(block.router, (0,))
    x = np.zeros((0, D), "float32")
    for training in (False, True):
        y = block(x, router_inputs=ids, training=training)
        assert y.shape == (0, D)
    assert all(np.isfinite(to_numpy(loss)) for loss in block.losses)


@pytest.mark.fast
@every_router
def test_config_round_trip(name):
    router = ROUTERS[name](expert_dropout=0.1, seed=3)
    again = type(router).from_config(router.get_config())
    assert again.get_config() == router.get_config()
    assert again.expert_dropout == 0.1
    given = inspect.signature(type(router)).parameters
    named = {n for n in given if n != "kwargs"}
    assert named <= set(router.get_config())


@pytest.mark.fast
@every_router
def test_symbolic_and_eager_assignments_agree(name, rng):
    router = ROUTERS[name]()
    ids = router_inputs_of(router, (2, 5))
    symbolic_ids = symbolic_router_inputs(router, batch_size=2)
    symbolic = router(
        keras.Input((5, D), batch_size=2), router_inputs=symbolic_ids
    )
    eager = router(draw(rng, 2, 5, D), router_inputs=ids)
    dtype = keras.backend.standardize_dtype
    for one, other in zip(symbolic, eager, strict=True):
        assert dtype(one.dtype) == dtype(other.dtype)
        assert len(one.shape) == len(other.shape)
        for size, actual in zip(one.shape, other.shape, strict=True):
            assert size in (None, actual)


@pytest.mark.one_backend
@every_router
def test_a_disabled_expert_is_not_needed(name, rng):
    """With NaN in its weights, outputs stay finite and no token is lost."""
    block = block_of(ROUTERS[name]())
    x = draw(rng, 4, 5, D)
    ids = router_inputs_of(block.router, (4, 5))
    before, _ = block(x, router_inputs=ids, return_assignment=True)
    bank = block.experts.up_kernel
    good = bank.numpy().copy()
    bank.assign(np.where(np.arange(E)[:, None, None] == 2, np.nan, good))
    block.disable_experts([2])
    after, a = block(x, router_inputs=ids, return_assignment=True)
    a = arrays(a)
    assert block.router.disabled_experts == [2]
    assert np.isfinite(to_numpy(after)).all()
    assert (a.expert_index != 2).all()
    if name in NORMALIZED:
        assert (a.expert_index != E).all()
    bank.assign(good)
    block.enable_experts()
    again = block(x, router_inputs=ids)
    np.testing.assert_array_equal(to_numpy(again), to_numpy(before))


def test_disabling_compiles_nothing_again(rng):
    """The router is traced once, and the prediction follows the switch."""
    router = keras_moe.Router(E, 1)
    traces = []

    def route(batch, route=router.route):
        traces.append(1)
        return route(batch)

    router.route = route
    inputs = keras.Input((D,))
    block = block_of(router)
    model = keras.Model(inputs, block(inputs))
    x = draw(rng, 32, D)
    before = model.predict(x, verbose=0)
    traced = len(traces)
    used = int(arrays(router(x)).expert_index[0])
    block.disable_experts([used])
    traces.clear()
    after = model.predict(x, verbose=0)
    assert (after[0] != before[0]).any()
    assert np.isfinite(after).all()
    if BACKEND != "torch":  # PyTorch traces nothing
        assert traced > 0
        assert not traces


def test_what_is_disabled_is_saved(tmp_path, rng):
    model = model_of(keras_moe.Router(E))
    model.get_layer("block").disable_experts([0, 4])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    block = again.get_layer("block")
    assert block.router.disabled_experts == [0, 4]
    block.enable_experts([4])
    assert block.router.disabled_experts == [0]


@pytest.mark.parametrize(
    "indices, message",
    [
        ([E], "must be in 0 ... 5"),
        ([-1], "must be in 0 ... 5"),
        (range(E - 1), "must leave 2 experts on"),
    ],
)
def test_experts_that_cannot_be_disabled(indices, message):
    router = keras_moe.Router(E, 2)
    with pytest.raises(ValueError, match="need a built layer"):
        router.disable_experts([0])
    router.build((None, D))
    with pytest.raises(ValueError, match=message):
        router.disable_experts(indices)
    assert router.disabled_experts == []


def test_expert_dropout_switches_experts_off_in_training(rng):
    """At a rate of 1/2, an expert is off with probability 1/2 - 0.021.

    At least K = 2 of the 6 experts stay on. A draw would leave fewer than two
    with probability 7 / 64; then one or two experts more stay on, which is 1/8
    of an expert per draw, or 1/8 / 6 = 0.021 per expert.
    """
    router = keras_moe.Router(E, 2, expert_dropout=0.5, seed=1)
    x = draw(rng, 200, D)
    off = []
    for _ in range(100):
        index = arrays(router(x, training=True)).expert_index
        assert (index < E).all()
        off.append(np.bincount(index, minlength=E) == 0)
    assert np.mean(off) == pytest.approx(0.5 - 0.021, abs=0.05)
    counts = np.bincount(arrays(router(x)).expert_index, minlength=E)
    assert (counts > 0).all()


@pytest.mark.one_backend
@every_router
def test_replay_takes_the_choices_and_not_the_weights(name, rng):
    """The choices are the recorded ones, and the weights are computed."""
    first, second = block_of(ROUTERS[name]()), block_of(ROUTERS[name]())
    x = draw(rng, 3, 5, D)
    ids = router_inputs_of(first.router, (3, 5))
    other = router_inputs_of(first.router, (3, 5), seed=1)
    recorded = first(x, router_inputs=ids, return_assignment=True)[1]
    replayed = second(
        x, router_inputs=other, replay=recorded, return_assignment=True
    )[1]
    recorded, replayed = arrays(recorded), arrays(replayed)
    for name in ("token_index", "expert_index"):
        np.testing.assert_array_equal(
            getattr(replayed, name), getattr(recorded, name)
        )
    again = first(x, router_inputs=ids, replay=recorded, return_assignment=True)
    np.testing.assert_allclose(
        to_numpy(again[1].combine_weights), recorded.combine_weights, atol=1e-6
    )


def test_a_transformer_block_passes_ids_and_replays_on(rng):
    router = keras_moe.HashRouter(E, method="modulo")
    layer = keras_moe.TransformerEncoderBlock(2, block_of(router))
    x, ids = draw(rng, 2, 5, D), np.arange(10).reshape(2, 5)
    symbolic = layer(
        keras.Input((5, D)), router_inputs=keras.Input((5,), dtype="int32")
    )
    assert symbolic.shape == (None, 5, D)
    _, a = layer(x, router_inputs=ids, return_assignment=True)
    np.testing.assert_array_equal(arrays(a).expert_index, np.arange(10) % E)
    _, b = layer(x, router_inputs=ids + 1, replay=a, return_assignment=True)
    np.testing.assert_array_equal(
        arrays(b).expert_index, arrays(a).expert_index
    )


def test_gradients_flow_through_a_replay(rng):
    block = block_of(keras_moe.Router(E, 2))
    x = draw(rng, 9, D)
    recorded = block_of(keras_moe.Router(E, 2))(x, return_assignment=True)[1]
    _, gradients = layer_gradients(block, x, replay=recorded)
    kernel = next(g for n, g in gradients.items() if "router" in n)
    assert np.abs(kernel).max() > 1e-4


def test_the_same_weights_choose_the_same_on_every_backend(tmp_path):
    if BACKEND != "jax":
        pytest.skip("checked in the run on JAX")
    choose_elsewhere.main(tmp_path / "jax.npz")
    for backend in ("tensorflow", "torch"):
        run_on(backend, "choose_elsewhere", tmp_path / f"{backend}.npz")
    here = np.load(tmp_path / "jax.npz")
    assert set(here) == set(ROUTERS)
    for backend in ("tensorflow", "torch"):
        there = np.load(tmp_path / f"{backend}.npz")
        for name in ROUTERS:
            np.testing.assert_array_equal(there[name], here[name], name)
