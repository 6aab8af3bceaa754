"""A cache changes no token, and each token costs the same as the others."""

import keras
import numpy as np
import pytest
from backend import to_numpy
from keras import ops
from model_zoo import MODELS, lively, outputs_of

from keras_moe import AttentionRouter, MoEBlock, kernels
from keras_moe.models import Greedy, Random, TopK, TopP

PROMPTS = np.array([[3, 4, 5], [6, 7, 0]], "int32")  # the second is shorter
LENGTH = 9


@pytest.fixture(scope="module")
def generated():
    """Return a language model, its tokens, and the shapes that its blocks got.

    All tests share the model, so that its programs are compiled once.
    """
    model = lively(
        MODELS["MoELanguageModel"](num_layers=2, moe_every=2, seed=1)
    )
    shapes, call = [], MoEBlock.call

    def spy(self, inputs, **options):
        shapes.append(tuple(inputs.shape))
        return call(self, inputs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MoEBlock, "call", spy)
        ids = model.generate(PROMPTS, LENGTH)
    return model, ids, shapes


@pytest.fixture
def language_model(generated):
    return generated[0]


@pytest.fixture(scope="module")
def seq2seq():
    return lively(MODELS["MoESeq2Seq"](positions="learned", seed=1))


def check_greedy(model, found):
    """Compare each token with the whole model's best on the whole result."""
    logits = outputs_of(model, found)
    logits[..., 0] = -np.inf  # padding is never generated
    best = logits.argmax(-1)
    np.testing.assert_array_equal(found[0, 3:], best[0, 2:-1])
    np.testing.assert_array_equal(found[1, 2:], best[1, 1:-1])


def test_greedy_takes_the_best_logit_of_the_whole_model(generated):
    model, found, _ = generated
    assert found.shape == (2, LENGTH) and found.dtype == "int32"
    for row, prompt in zip(found, PROMPTS, strict=True):
        ids = prompt[prompt != 0]
        np.testing.assert_array_equal(row[: len(ids)], ids)
    check_greedy(model, found)
    assert len(set(found[0, 3:])) > 1  # otherwise, a constant would pass


def test_a_cache_changes_no_token(language_model):
    options = {"max_length": LENGTH, "sampler": "top_k", "seed": 5}
    one, other = (
        language_model.generate(PROMPTS, use_cache=use, **options)
        for use in (True, False)
    )
    np.testing.assert_array_equal(one, other)


def test_a_cache_changes_no_token_of_an_encoder_decoder(seq2seq):
    one, other = (
        seq2seq.generate(
            PROMPTS, LENGTH, start_token_id=1, end_token_id=None, use_cache=use
        )
        for use in (True, False)
    )
    np.testing.assert_array_equal(one, other)
    assert (one[:, 0] == 1).all() and (one != 0).all()
    assert len(set(one[:, 1:].flat)) > 1


def test_what_stops_is_followed_by_padding(generated, seq2seq):
    model, free, _ = generated
    stop = int(free[0, 5])  # some token that is generated
    found = model.generate(PROMPTS, LENGTH, stop_token_id=stop)
    check_stopped(found[0], free[0], stop, 3)
    check_stopped(found[1], free[1], stop, 2)
    free = seq2seq.generate(PROMPTS, LENGTH, end_token_id=None)
    stop = int(free[1, 2])
    found = seq2seq.generate(PROMPTS, LENGTH, end_token_id=stop)
    check_stopped(found[0], free[0], stop, 1)
    check_stopped(found[1], free[1], stop, 1)


def check_stopped(found, free, stop, prompt):
    """Check for equal ids up to the first `stop`, and then for padding."""
    written = list(free[prompt:])
    if stop not in written:
        # The other rows may stop the loop before this row is complete.
        return np.testing.assert_array_equal(
            found[found != 0], free[found != 0]
        )
    end = prompt + written.index(stop) + 1
    np.testing.assert_array_equal(found[:end], free[:end])
    assert (found[end:] == 0).all()


def test_a_stop_token_in_the_prompt_stops_nothing(generated):
    model, free, _ = generated
    found = model.generate(PROMPTS, LENGTH, stop_token_id=int(PROMPTS[0, 1]))
    np.testing.assert_array_equal(found[0, :4], free[0, :4])
    assert found[0, 3] != 0


def test_a_seed_draws_the_same(language_model):
    options = {"max_length": LENGTH, "sampler": "top_k"}
    one, again, other = (
        language_model.generate(PROMPTS, seed=seed, **options)
        for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_token_costs_the_same_at_every_position(generated):
    """After the prompt, every block gets one token per sequence.

    The caches have the length of the result from the start, because a loop of
    JAX or TensorFlow does not accept others.
    """
    model, _, (prefill, *steps) = generated
    assert prefill == (2, 2, 8)  # the shorter prompt
    assert steps and set(steps) == {(2, 1, 8)}
    sizes = {
        tuple(x.shape) for own in model.empty_cache(2, LENGTH) for x in own
    }
    assert sizes == {(2, LENGTH, 1, 4)}  # one key head of two heads


def test_a_sampler_of_keras_hub(generated):
    """With k=1, the sampler draws the best token, and still moves its seed."""
    hub = pytest.importorskip("keras_hub")
    model, wanted, _ = generated
    sampler = hub.samplers.TopKSampler(k=1, seed=1)
    before = to_numpy(sampler.variables[0])
    found = model.generate(PROMPTS, LENGTH, sampler=sampler)
    np.testing.assert_array_equal(found, wanted)
    assert (to_numpy(sampler.variables[0]) != before).any()


def test_new_weights_are_used_by_a_compiled_program(generated):
    model, before, _ = generated
    model.norm.gamma.assign(-model.norm.gamma.numpy())
    after = model.generate(PROMPTS, LENGTH)
    assert (before != after).any()
    check_greedy(model, after)
    model.norm.gamma.assign(-model.norm.gamma.numpy())


def test_samplers_draw_by_the_running_sum():
    """The ids 2, 0, and 1 have probabilities 0.5, 0.3, and 0.2."""
    logits = np.log([[0.3, 0.2, 0.5]] * 4).astype("float32")
    uniform = np.array([0.1, 0.55, 0.79, 0.9], "float32")

    def ids(sampler):
        return list(to_numpy(sampler(ops.convert_to_tensor(logits), uniform)))

    assert ids(Greedy()) == [2, 2, 2, 2]
    assert ids(Random()) == [2, 0, 0, 1]
    # Of 0.5 and 0.3, the first has 0.625 of the sum.
    assert ids(TopK(2)) == [2, 2, 0, 0]
    assert ids(TopK(9)) == ids(Random())
    # 0.5 does not reach 0.6, but 0.5 and 0.3 together do.
    assert ids(TopP(0.6)) == [2, 2, 0, 0]
    assert ids(TopP(0.4)) == [2, 2, 2, 2]
    # The squares 0.25, 0.09, and 0.04 are 0.658, 0.237, and 0.105 of 0.38.
    assert ids(Random(temperature=0.5)) == [2, 2, 0, 1]


def test_compiled_programs_read_and_write_variables():
    read, written = keras.Variable([2.0]), keras.Variable([0.0])

    def function(x):
        written.assign(written + x)
        return read * x

    run = kernels.compiled(function, [read, written], [written])
    x = np.array([3.0], "float32")
    assert to_numpy(run(ops.convert_to_tensor(x)))[0] == 6
    read.assign([5.0])
    assert to_numpy(run(ops.convert_to_tensor(x)))[0] == 15
    assert to_numpy(written)[0] == 6


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        (np.array([3, 4]), {}, "`token_ids` must be integers"),
        (np.array([[3.0]]), {}, "`token_ids` must be integers"),
        (np.array([[0, 3]]), {}, "padding .0. only on the right"),
        (np.array([[0, 0]]), {}, "at least one token per row"),
        (PROMPTS, {"max_length": 2}, "`max_length` must be at least"),
        (PROMPTS, {"max_length": 13}, "`max_length` must be at least"),
        (PROMPTS, {"sampler": "beam"}, "`sampler` must be one of"),
    ],
)
def test_errors(prompt, options, message, language_model):
    with pytest.raises(ValueError, match=message):
        language_model.generate(prompt, **options)


def test_a_router_that_reads_context_has_no_cache():
    model = MODELS["MoELanguageModel"](router=AttentionRouter(3, causal=True))
    with pytest.raises(ValueError, match="`cache` must be None"):
        model.generate(PROMPTS, 6)
