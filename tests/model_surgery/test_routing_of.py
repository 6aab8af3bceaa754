"""Test `routing_of`, which returns a data set's routing by block path."""

import keras
import numpy as np
import pytest
from backend import to_numpy

import keras_moe
from keras_moe import Assignment, MoEBlock, find_blocks, routing_of

N, S, D, E = 22, 3, 4, 4  # batches of 8: the last has 6 examples


def by_kind(block):
    """Make a block send tokens with feature d to expert d, and return it."""
    block.router.kernel.assign(np.eye(D, E, dtype="float32"))
    return block


def kinds_and_tokens(rng):
    """Return integers `(N, S)` and their one-hot tokens `(N, S, D)`."""
    kinds = rng.integers(0, E, (N, S))
    return kinds, np.eye(D, dtype="float32")[kinds]


def assert_goes_by_kind(assignment, kinds):
    """Check for one pair per token, at its place in the whole data set.

    The logits are one 1 and three 0, so the weight is e / (e + 3).
    """
    assert isinstance(assignment, Assignment)
    assert all(
        isinstance(field, (np.ndarray, np.generic)) for field in assignment
    )
    np.testing.assert_array_equal(assignment.token_index, np.arange(N * S))
    np.testing.assert_array_equal(assignment.expert_index, kinds.ravel())
    weights = np.full(N * S, np.e / (np.e + 3))
    np.testing.assert_allclose(assignment.combine_weights, weights, rtol=1e-5)
    assert assignment.router_probs.shape == (N * S, E)
    assert assignment.router_logits.shape == (N * S, E)
    assert (
        assignment.token_index.dtype == assignment.expert_index.dtype == "int32"
    )


def functional_model():
    inputs = keras.Input((S, D))
    block = MoEBlock(E, 5, top_k=1, name="moe")
    model = keras.Model(inputs, keras.layers.Dense(2)(block(inputs)))
    by_kind(block)
    return model


def test_tokens_are_counted_over_the_whole_data_set(rng):
    kinds, tokens = kinds_and_tokens(rng)
    model = functional_model()
    before = [np.array(w) for w in model.get_weights()]
    routing = routing_of(model, tokens, batch_size=8)
    assert list(routing) == ["moe"] == [b.path for b in find_blocks(model)]
    assert_goes_by_kind(routing["moe"], kinds)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # A call behaves as before, so the run left nothing on the class.
    outputs = find_blocks(model)[0](tokens[:2])
    assert outputs.shape == (2, S, D)


def test_data_in_batches_of_its_own(rng):
    """Batches have any size and have targets, as for `fit`."""
    kinds, tokens = kinds_and_tokens(rng)
    model = functional_model()
    batches = [(tokens[:5], kinds[:5]), (tokens[5:], kinds[5:])]
    assert_goes_by_kind(routing_of(model, iter(batches))["moe"], kinds)


def test_a_saved_model_routes_as_before(rng, tmp_path):
    kinds, tokens = kinds_and_tokens(rng)
    functional_model().save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_goes_by_kind(routing_of(loaded, tokens, batch_size=8)["moe"], kinds)


class InLists(keras.Model):
    """A model with one block that is called twice, and one that never is."""

    def __init__(self):
        super().__init__()
        self.mixtures = [MoEBlock(E, 5, top_k=1, name="moe") for _ in range(2)]
        self.spare = MoEBlock(E, 5, name="spare")

    def build(self, input_shape):
        for block in self.mixtures:
            block.build(input_shape["a"])
            by_kind(block)

    def call(self, inputs, training=None):
        first, second = self.mixtures
        second(inputs["a"], training=training)
        first(inputs["a"], training=training)
        return first(inputs["b"], training=training)


def test_dicts_lists_and_second_calls(rng):
    """The model is not built before, and its blocks have the same path."""
    kinds, a = kinds_and_tokens(rng)
    others, b = kinds_and_tokens(rng)
    routing = routing_of(InLists(), {"a": a, "b": b}, batch_size=8)
    paths = sorted(routing)
    assert len(paths) == 3
    assert [path.rsplit("/", 1)[-1] for path in paths] == [
        "moe",
        "moe:1",
        "moe_1",
    ]
    for path, wanted in zip(paths, (kinds, others, kinds), strict=True):
        assert_goes_by_kind(routing[path], wanted)


def test_padding_and_several_pairs_per_token(rng):
    """Each token has two pairs, and padding has none but keeps its index."""
    ids = rng.integers(1, 9, (N, S))
    ids[3:9, 1:] = 0
    inputs = keras.Input((S,), dtype="int32")
    h = keras.layers.Embedding(9, D, mask_zero=True)(inputs)
    model = keras.Model(inputs, MoEBlock(E, 5, top_k=2, name="moe")(h))
    assignment = routing_of(model, ids, batch_size=8)["moe"]
    index = assignment.token_index
    np.testing.assert_array_equal(index, np.repeat(np.arange(N * S), 2))
    padding = (ids == 0).ravel()[index]
    np.testing.assert_array_equal(assignment.expert_index == E, padding)
    best = np.argsort(-assignment.router_logits, axis=1)[:, :2]
    np.testing.assert_array_equal(
        assignment.expert_index[~padding], best.ravel()[~padding]
    )


def test_a_router_with_any_number_of_pairs(rng):
    """Each expert takes the C = ceil(2 T / 4) best tokens of a batch."""
    inputs = keras.Input((S, D))
    router = keras_moe.ExpertChoiceRouter(E, bidirectional=True)
    model = keras.Model(
        inputs, MoEBlock(E, 5, router=router, name="moe")(inputs)
    )
    x = rng.normal(size=(N, S, D)).astype("float32")
    assignment = routing_of(model, x, batch_size=8)["moe"]
    kernel = to_numpy(find_blocks(model)[0].router.kernel)
    logits = x.reshape(-1, D) @ kernel
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = set()
    for start, stop in ((0, 24), (24, 48), (48, 66)):
        for e in range(E):
            best = np.argsort(-scores[start:stop, e])[: (stop - start) // 2]
            expected |= {(e, start + t) for t in best}
    pairs = list(
        zip(assignment.expert_index, assignment.token_index, strict=True)
    )
    assert len(pairs) == (12 + 12 + 9) * E
    assert set(pairs) == expected


def test_capacity_leaves_pairs_out_as_predict_does():
    """All 24 tokens of a batch go to expert 1, and C = ceil(24 / 4) stay."""
    inputs = keras.Input((S, D))
    block = MoEBlock(E, 5, top_k=1, eval_capacity_factor=1.0, name="moe")
    model = keras.Model(inputs, block(inputs))
    by_kind(block)
    x = np.tile(np.eye(D)[1], (16, S, 1))
    index = routing_of(model, x, batch_size=8)["moe"].expert_index
    once = [1] * 6 + [E] * 18
    np.testing.assert_array_equal(index, once + once)


def test_whole_models_route_examples(rng):
    kinds = rng.integers(0, 2, N)
    experts = [
        keras.Sequential([keras.layers.Dense(3), MoEBlock(2, 4, name="inner")])
        for _ in range(2)
    ]
    router = keras_moe.RuleRouter(2)
    mixture = keras_moe.MixtureOfModels(experts, router, name="mixture")
    x, which = keras.Input((D,)), keras.Input((), dtype="int32")
    model = keras.Model([x, which], mixture(x, router_inputs=which))
    routing = routing_of(model, [rng.normal(size=(N, D)), kinds], batch_size=8)
    # `inner` gets the rows of an expert, not those of the data set.
    ((path, assignment),) = routing.items()
    assert path.endswith("mixture")
    np.testing.assert_array_equal(assignment.token_index, np.arange(N))
    np.testing.assert_array_equal(assignment.expert_index, kinds)


class Cell(keras.layers.Layer):
    """A recurrent cell with a block inside."""

    state_size = output_size = D

    def __init__(self):
        super().__init__()
        self.block = MoEBlock(2, 4)

    def build(self, input_shape):
        self.block.build(input_shape)

    def call(self, x, states, training=None):
        y = self.block(x, training=training)
        return y, [y]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "model, arguments, match",
    [
        (
            functional_model,
            {"x": np.zeros((0, S, D))},
            "`x` must hold at least",
        ),
        (
            functional_model,
            {"batch_size": 0},
            "`batch_size` must be an integer",
        ),
        (functional_model, {"x": 3}, "`data` must be arrays"),
        (
            functional_model,
            {"x": [np.zeros((4, S, D)), np.zeros(3)]},
            r"`data` must hold the same .*\[4, 3\]",
        ),
        (lambda: keras.layers.Dense(2), {}, "`model` must contain a MoEBlock"),
        (lambda: keras.layers.RNN(Cell()), {}, "or an RNN's cell. Received"),
    ],
)
def test_what_has_no_routing_is_an_error(model, arguments, match):
    arguments = {"x": np.ones((4, S, D), "float32")} | arguments
    with pytest.raises(ValueError, match=match):
        routing_of(model(), **arguments)


def test_a_loop_of_the_backend_is_an_error():
    """PyTorch has no such loops, so each step is a call there."""

    class Scanned(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.block = MoEBlock(2, 4, name="moe")

        def build(self, input_shape):
            self.block.build((None, D))

        def call(self, x):
            def step(carry, row):
                return carry, self.block(row)

            rows = keras.ops.transpose(x, (1, 0, 2))
            rows = keras.ops.scan(step, keras.ops.zeros_like(rows[0]), rows)[1]
            return keras.ops.transpose(rows, (1, 0, 2))

    x = np.ones((2, S, D), "float32")
    if keras.backend.backend() == "torch":
        assert len(routing_of(Scanned(), x)) == S
    else:
        with pytest.raises(ValueError, match="must not call its blocks inside"):
            routing_of(Scanned(), x)
