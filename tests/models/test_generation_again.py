"""Test that each of many calls uses the current state of the model.

The expected tokens come from the whole model on the whole result. The outputs
at token t - 1 give token t, by the sampler's definition in NumPy.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND, to_numpy
from keras import ops
from model_zoo import MODELS, V, lively

from keras_moe import MoEBlock, kernels
from keras_moe.export.observing import observer
from keras_moe.layers.transformer.attention import CachedAttention
from keras_moe.models import PositionEmbedding, Random, TopK, TopP

L = 12  # maximum length of the models
LONG, SHORT = np.array([[3, 4, 5, 1, 2], [6, 7, 0, 0, 0]]), np.array([[5]])


def greedy(probs, draw):
    return probs.argmax()


def by_running_sum(keep, temperature=1.0):
    """Return a function that draws from the tokens that `keep` leaves."""

    def choose(probs, draw):
        probs = probs ** (1 / temperature)
        ids = np.argsort(-probs, kind="stable")
        ranked = probs[ids] / probs.sum()
        ranked = np.where(keep(ranked), ranked, 0)
        running = np.cumsum(ranked)
        return ids[np.searchsorted(running, draw * running[-1], side="right")]

    return choose


def best(k):
    return lambda ranked: np.arange(len(ranked)) < k


def nucleus(p):
    return lambda ranked: np.cumsum(ranked) - ranked < p


def check(logits, ids, lengths, choose, seed, stops=()):
    """Check every token after the prompts, up to the first stop of its row."""
    logits = np.asarray(logits, "float64")
    logits[..., 0] = -np.inf  # padding
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    draws = np.random.default_rng(seed).random(ids.shape[::-1])
    written = 0
    for row, length in enumerate(lengths):
        for t in range(length, ids.shape[1]):
            if ids[row, t] == 0:
                # This row ended before, or all rows did.
                assert not ids[row, t:].any()
                assert set(ids[row, length:t]) & set(stops)
                break
            wanted = choose(probs[row, t - 1], draws[t, row])
            assert ids[row, t] == wanted, (row, t)
            written += 1
            if ids[row, t] in stops:
                assert not ids[row, t + 1 :].any()
                break
    return written


CALLS = [
    (LONG, 6, "greedy", greedy, None),
    (LONG, 12, "greedy", greedy, None),
    (LONG, 9, "greedy", greedy, [1, 7]),
    (LONG, 12, "greedy", greedy, 3),
    (SHORT, 12, "greedy", greedy, None),
    (LONG, 12, Random(0.5), by_running_sum(best(V), 0.5), None),
    (LONG, 12, TopK(2), by_running_sum(best(2)), (2, 4, 6)),
    (LONG, 12, TopK(3), by_running_sum(best(3)), None),
    (LONG, 12, TopP(0.7), by_running_sum(nucleus(0.7)), None),
    (LONG, 6, "greedy", greedy, None),
]


@pytest.fixture(scope="module")
def decoder():
    return lively(MODELS["MoELanguageModel"](seed=1), 0.4)


@pytest.fixture(scope="module")
def encoder_decoder():
    return lively(MODELS["MoESeq2Seq"](seed=1), 0.4)


def whole_of(model):
    """Return the current model as a function of ids, padded to (2, L)."""
    program = kernels.compiled(
        lambda *args: model(*args, training=False), model.variables
    )

    def whole(ids, source=None):
        def full(ids):
            space = [(0, 2 - len(ids)), (0, L - ids.shape[1])]
            return ops.convert_to_tensor(np.pad(ids, space).astype("int32"))

        given = full(ids)
        if source is not None:
            given = {
                "encoder_token_ids": full(source),
                "decoder_token_ids": given,
            }
        return to_numpy(program(given))

    return whole


def test_a_language_model_called_in_many_ways(decoder):
    whole, written = whole_of(decoder), 0
    for seed, (prompt, length, sampler, choose, stops) in enumerate(CALLS):
        ids = decoder.generate(
            prompt, length, sampler, stop_token_id=stops, seed=seed
        )
        assert ids.shape == (len(prompt), length)
        stops = np.ravel(stops) if stops is not None else ()
        lengths = (prompt != 0).sum(1)
        written += check(whole(ids), ids, lengths, choose, seed, stops)
    assert written > 60


def test_an_encoder_decoder_called_in_many_ways(encoder_decoder):
    whole, written = whole_of(encoder_decoder), 0
    calls = [CALLS[number] for number in (0, 2, 3, 6, 4)]
    for seed, (source, length, sampler, choose, stops) in enumerate(calls):
        start = 1 + seed % 2
        ids = encoder_decoder.generate(
            source, length, start, stops, sampler, seed
        )
        assert ids.shape == (len(source), length) and (ids[:, 0] == start).all()
        stops = np.ravel(stops) if stops is not None else ()
        lengths = np.ones(len(source), int)
        written += check(whole(ids, source), ids, lengths, choose, seed, stops)
    assert written > 20


def lora(model):
    model.moe_blocks[0].disable_experts([0])
    layer = model.decoder[0].attention.value
    layer.enable_lora(2)
    for weight in (layer.lora_kernel_a, layer.lora_kernel_b):
        weight.assign(np.cos(np.indices(weight.shape).sum(0)))


CHANGES = [
    lora,
    lambda m: setattr(m.decoder[0].attention.value, "lora_alpha", 30.0),
    lambda m: setattr(m.moe_blocks[0].router, "top_k", 1),
    lambda m: m.quantize("int8"),
]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_a_model_that_is_changed_between_calls():
    """After each change, the tokens are those of the changed model."""
    model = lively(MODELS["MoELanguageModel"](seed=2), 0.5)
    options = {"max_length": L, "sampler": Random(), "seed": 0}
    choose = by_running_sum(best(V))
    before, moved = model.generate(LONG, **options), []
    for change in CHANGES:
        change(model)
        ids = model.generate(LONG, **options)
        check(whole_of(model)(ids), ids, [5, 2], choose, 0)
        moved.append((ids != before).any())
        before = ids
    assert all(moved)  # otherwise, an old program would pass


class Biased:
    """A greedy sampler with a bias for one token, which may change."""

    def __init__(self, token):
        self.token = token

    def __call__(self, logits, uniform):
        bias = ops.one_hot(self.token, logits.shape[-1]) * 1e3
        return ops.argmax(logits + bias, axis=-1)


def test_samplers_that_are_changed_or_collected(decoder):
    def tokens(sampler):
        return set(decoder.generate(SHORT, 4, sampler)[0, 1:].tolist())

    sampler = Biased(3)
    assert tokens(sampler) == {3}
    sampler.token = 4
    assert tokens(sampler) == {4}
    for token in (1, 2):  # one is collected before the next is made
        assert tokens(lambda *args: Biased(token)(*args)) == {token}  # noqa: B023
    variable = keras.Variable(5, dtype="int32", trainable=False)
    sampler = Biased(variable)
    assert tokens(sampler) == {5}
    variable.assign(6)
    assert tokens(sampler) == {6}


class Counted:
    """A sampler that counts its runs: one per program if it is traced."""

    runs = 0

    def __call__(self, logits, uniform):
        Counted.runs += 1
        return ops.argmax(logits, axis=-1)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled")
def test_a_program_is_traced_again_only_for_another_capture(decoder):
    def traced(*args, **kwargs):
        Counted.runs = 0
        decoder.generate(*args, **kwargs)
        return Counted.runs

    sampler = Counted()
    assert traced(SHORT, 4, sampler)
    assert not traced(SHORT + 1, 4, sampler, stop_token_id=2, seed=3)
    with kernels.use("reference"):
        assert traced(SHORT, 4, sampler)
        assert not traced(SHORT, 4, sampler)
    assert not traced(SHORT, 4, sampler)
    assert traced(SHORT, 5, sampler)
    assert not traced(SHORT, 4, sampler)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled")
def test_few_programs_are_kept(decoder):
    programs = kernels.Programs(decoder)
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    for number in range(40):
        program = programs.of(lambda x: x + number)  # noqa: B023
        x = ops.convert_to_tensor(np.float32([1]))
        assert to_numpy(program(x))[0] == 1 + number or number > 2
    assert len(programs._kept) == 32
    programs = kernels.Programs(layer)
    programs.of(lambda x: layer(x))
    layer.quantize("int8")  # creates other variables
    programs.of(lambda x: layer(x))
    assert len(programs._kept) == 1


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_an_observer_runs_a_model_that_was_quantized():
    inputs = keras.Input((8,))
    model = keras.Model(inputs, MoEBlock(3, intermediate_dim=4)(inputs))
    lively(model)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    observe = observer(model)
    before = observe([x]).outputs[0]
    model.quantize("int8")
    after = observe([x]).outputs[0]
    np.testing.assert_allclose(after, model.predict(x, verbose=0), atol=1e-4)
    assert abs(after - before).max() > 1e-3


@pytest.fixture(scope="module")
def attention():
    layer = CachedAttention(2, causal=True)
    layer.build((2, None, 4))
    return layer, ops.ones((2, 5, 4)), layer.empty_cache(2, 6)


def test_nothing_is_written_beyond_a_cache(attention):
    """JAX and TensorFlow would write to the last places instead."""
    layer, x, cache = attention
    assert layer(x, cache=cache, index=1)[0].shape == (2, 5, 4)
    for index in (2, -1, np.int32(2)):
        message = f"Received: 5 tokens, index={index}, a cache of 6 places"
        with pytest.raises(ValueError, match=message):
            layer(x, cache=cache, index=index)
    with pytest.raises(ValueError, match="as many sequences as `inputs`"):
        layer(x[:1], cache=cache)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled")
def test_a_position_in_a_tensor_is_read_unless_it_is_traced(attention):
    layer, x, cache = attention
    index = ops.convert_to_tensor(np.int32(2))

    def step(x, cache, index):
        return layer(x, cache=cache, index=index)[0]

    with pytest.raises(ValueError, match="a place for each token"):
        step(x, cache, index)
    compiled = kernels.compiled(step, layer.variables)
    assert compiled(x, cache, index).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="a place for each token"):
        compiled(x, layer.empty_cache(2, 4), index)


def test_learned_positions_end_with_their_table():
    layer = PositionEmbedding(12)
    x = ops.ones((1, 5, 4))
    assert layer(x, index=7).shape == (1, 5, 4)
    with pytest.raises(ValueError, match="index=8, max_length=12"):
        layer(x, index=8)
