"""Test what samplers and `generate` accept, and draws of almost 0 and 1."""

import numpy as np
import pytest
from backend import to_numpy
from keras import ops
from model_zoo import MODELS, V

from keras_moe.models import Greedy, Random, TopK, TopP, generation, prompts
from keras_moe.models.samplers import FORBIDDEN

PROMPT = np.array([[3, 4], [5, 0]], "int32")
NAN = float("nan")
# Ids 2, 4, 1 have 0.5, 0.3, 0.2; padding (0) and 3 have nothing.
LOGITS = np.array([[FORBIDDEN, *np.log([0.2, 0.5, 1e-60, 0.3])]], "float32")
FULL = [Random(), TopK(4), TopK(9), TopP(1.0), Random(1e30), Random(1e-50)]


def drawn(sampler, draw, logits=LOGITS):
    uniform = ops.convert_to_tensor(np.float32([draw]))
    return int(to_numpy(sampler(ops.convert_to_tensor(logits), uniform))[0])


@pytest.mark.parametrize("draw", [1.0, 1 - 2.0**-24, 1.5])
@pytest.mark.parametrize(
    "sampler, last",
    [
        (Random(), 1),
        (TopK(2), 4),
        (TopK(9), 1),
        (TopP(0.6), 4),
        (TopP(0.5), 2),
        (TopP(1.0), 1),
        (Greedy(), 2),
    ],
)
def test_the_largest_draw_takes_the_last_possible_token(sampler, last, draw):
    assert drawn(sampler, draw) == last


@pytest.mark.parametrize("sampler", FULL)
def test_padding_is_not_drawn_at_any_temperature(sampler):
    draws = np.linspace(0, 1, 9)
    found = {drawn(sampler, draw) for draw in draws}
    assert 0 not in found and found <= {1, 2, 3, 4}
    if sampler == Random(1e-50):  # only the best token
        assert found == {2}
    if sampler == Random(1e30):  # all tokens equally, except padding
        assert found == {1, 2, 3, 4}


@pytest.mark.one_backend
def test_draws_are_below_one(monkeypatch):
    """float32 would round a draw of 1 - 2^-26 up to 1."""
    highest = 1 - 2.0**-26
    assert np.float32(highest) == 1

    class Generator:
        def random(self, shape):
            return np.full(shape, highest)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Generator())
    draws = generation.draws_of(3, (2, 2))
    assert draws.dtype == "float32" and (draws < 1).all()
    assert (draws == 1 - 2.0**-24).all()


@pytest.fixture(scope="module")
def models():
    return {
        name: MODELS[name](seed=1)
        for name in ("MoELanguageModel", "MoESeq2Seq")
    }


@pytest.mark.parametrize("name", ["MoELanguageModel", "MoESeq2Seq"])
def test_a_draw_of_one_generates_no_padding(models, monkeypatch, name):
    monkeypatch.setattr(
        generation, "draws_of", lambda seed, shape: np.ones(shape, "float32")
    )
    options = {"end_token_id": None} if name == "MoESeq2Seq" else {}
    ids = models[name].generate(PROMPT, 6, sampler="random", **options)
    assert (ids > 0).all() and (ids < V).all()


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", [Random, TopK, TopP])
@pytest.mark.parametrize("value", [0, -1.0, NAN, float("inf"), True, "1", None])
def test_temperatures_are_checked(kind, value):
    with pytest.raises(ValueError, match="`temperature` must .* Received"):
        kind(temperature=value)


@pytest.mark.one_backend
@pytest.mark.parametrize("value", [0, -1.0, 1.1, NAN, True, "0.9", None, [0.9]])
def test_probabilities_are_checked(value):
    with pytest.raises(ValueError, match="`p` must .* Received"):
        TopP(value)


@pytest.mark.one_backend
@pytest.mark.parametrize("value", [0, -1, 2.0, NAN, True, "5", None])
def test_counts_are_checked(value):
    with pytest.raises(ValueError, match="`k` must .* Received"):
        TopK(value)


@pytest.mark.one_backend
@pytest.mark.parametrize("sampler", ["beam", "Greedy", "", 3, None, [Greedy()]])
def test_other_samplers_are_refused(models, sampler):
    with pytest.raises(ValueError, match="`sampler` must be one of"):
        models["MoELanguageModel"].generate(PROMPT, 6, sampler)


@pytest.mark.one_backend
def test_samplers_hold_plain_numbers():
    sampler = TopK(np.int64(3), np.float32(0.5))
    assert sampler == TopK(3, 0.5) and hash(sampler) == hash(TopK(3, 0.5))
    assert type(sampler.k) is int and type(sampler.temperature) is float


@pytest.mark.one_backend
def test_a_class_is_no_sampler(models):
    with pytest.raises(ValueError, match=r"Pass TopK\(\)"):
        models["MoELanguageModel"].generate(PROMPT, 6, TopK)


def test_what_a_sampler_returns_is_checked(models):
    model = models["MoELanguageModel"]
    with pytest.raises(ValueError, match="must return one token id per seq"):
        model.generate(PROMPT, 3, lambda logits, uniform: logits)

    def beyond(logits, uniform):
        return ops.argmax(logits, axis=-1) * 0 + V

    with pytest.raises(ValueError, match="`sampler` must return ids in 0"):
        model.generate(PROMPT[:1], 3, beyond)  # PyTorch cannot embed such an id


PROMPTS = [
    PROMPT[:0],
    np.zeros((1, 0), "int32"),
    -PROMPT,
    PROMPT + V,
    np.array([[2**40 + 1]]),
    PROMPT.astype("float32"),
    PROMPT > 3,
    np.array([[NAN]]),
    [["a", "b"]],
    [[1, 2], [3]],
    [[1, None]],
    "abc",
    None,
    {"ids": PROMPT},
]


@pytest.mark.one_backend
@pytest.mark.parametrize("ids", PROMPTS)
@pytest.mark.parametrize("name", ["MoELanguageModel", "MoESeq2Seq"])
def test_prompts_are_checked(models, ids, name):
    with pytest.raises(ValueError, match="token_ids` must .* Received"):
        models[name].generate(ids, 6)


IDS = [0, -1, V, 2.0, NAN, True, "2", b"2", {2: 1}, [], [2, V], [[2]], [True]]


@pytest.mark.one_backend
@pytest.mark.parametrize("ids", IDS)
def test_ids_that_end_a_sequence_are_checked(models, ids):
    with pytest.raises(ValueError, match="`stop_token_id` must .* Received"):
        models["MoELanguageModel"].generate(PROMPT, 6, stop_token_id=ids)
    with pytest.raises(ValueError, match="`end_token_id` must .* Received"):
        models["MoESeq2Seq"].generate(PROMPT, 6, end_token_id=ids)


@pytest.mark.one_backend
def test_other_arguments_are_checked(models):
    for options, message in (
        ({"start_token_id": 0}, "`start_token_id` must"),
        ({"start_token_id": V}, "`start_token_id` must"),
        ({"start_token_id": True}, "`start_token_id` must"),
        ({"use_cache": "False"}, "`use_cache` must"),
        ({"seed": -1}, "`seed` must"),
        ({"seed": 1.5}, "`seed` must"),
        ({"max_length": True}, "`max_length` must"),
        ({"max_length": 0}, "`max_length` must"),
        ({"max_length": 99}, "`max_length` must"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*Received"):
            models["MoESeq2Seq"].generate(PROMPT, **options)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "value, ids",
    [
        (None, ()),
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.array(3), (3,)),
        ([5, 3, 5], (3, 5)),
        ((3,), (3,)),
        ({3, 4}, (3, 4)),
        (range(1, 4), (1, 2, 3)),
        (np.array([2, 1]), (1, 2)),
        (iter([2, 1]), (1, 2)),
    ],
)
def test_one_id_or_several_end_a_sequence(value, ids):
    assert prompts.stop_ids_of("stop_token_id", value, V) == ids


def test_tensors_are_ids(models):
    """Prompts and stop ids may be tensors, and the stop ids are not kept."""
    model = models["MoELanguageModel"]
    stop = ops.convert_to_tensor(np.array([1, 2], "int32"))
    prompt = ops.convert_to_tensor(PROMPT)
    found = model.generate(prompt, 6, stop_token_id=stop)
    wanted = model.generate(PROMPT.tolist(), 6, stop_token_id=[1, 2])
    np.testing.assert_array_equal(found, wanted)
    assert "stop_token_id" not in model.get_config()
