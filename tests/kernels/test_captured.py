"""Functions have equal keys if and only if their captures are equal."""

import functools
import types

import keras
import numpy as np
import pytest
from backend import BACKEND
from model_zoo import MODELS

from keras_moe import kernels
from keras_moe.distribution import steps
from keras_moe.models import Random, TopK, TopP

KEPT = pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled")
OFFSET = 1.0
SETTINGS = {"step": 1}


def key_of(function):
    return kernels.captured_by(function)[0]


def adding(*held, default=0):
    """Return a function that captured the arguments; its code never differs."""

    def function(x, more=default):
        return x, held, more

    return function


class Sampler:
    """A callable object whose attributes may change."""

    def __init__(self, k=1):
        self.k = k

    def __call__(self, logits, uniform):
        return logits, self.k


@pytest.mark.parametrize(
    "one, other",
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ({"a": 1}, {"a": 2}),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([1, 2], "int32"), np.array([1, 2], "int64")),
        (TopK(3), TopK(4)),
        (Random(0.5), TopP(0.5)),
        (len, max),
        (adding(1), adding(2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (lambda x: x + 1, lambda x: x + 2),
    ],
)
def test_unlike_captures_have_unlike_keys(one, other):
    assert key_of(adding(one)) != key_of(adding(other))
    assert key_of(adding(default=one)) != key_of(adding(default=other))


@pytest.mark.parametrize(
    "make",
    [
        lambda: 7,
        lambda: float("nan"),
        lambda: [1, {"a": (2, None)}],
        lambda: np.arange(3),
        lambda: TopK(3, temperature=0.5),
        lambda: adding(1, 2),
        lambda: functools.partial(max, 1),
        lambda: len,
    ],
)
def test_equal_captures_have_equal_keys(make):
    one, other = key_of(adding(make())), key_of(adding(make()))
    assert one == other and hash(one) == hash(other)


def test_what_is_changed_in_place_changes_the_key():
    sampler, numbers, array = Sampler(), [1], np.zeros(2)
    settings = types.SimpleNamespace(t=1.0)
    functions = [sampler, adding(sampler), adding(numbers), adding(array)]
    functions += [adding(settings), sampler.__call__, adding({"a": numbers})]
    before = [key_of(function) for function in functions]
    assert before == [key_of(function) for function in functions]
    sampler.k, settings.t, array[1] = 2, 2.0, 5
    numbers.append(3)
    after = [key_of(function) for function in functions]
    assert all(x != y for x, y in zip(before, after, strict=True))


def test_globals_that_a_function_names_are_in_the_key(monkeypatch):
    def function(x):
        return [x + OFFSET for _ in range(SETTINGS["step"])]

    before = key_of(function)
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "OFFSET", 2.0)
        assert key_of(function) != before
    with monkeypatch.context() as patch:
        patch.setitem(SETTINGS, "step", 2)
        assert key_of(function) != before
    assert key_of(function) == before


def test_ids_are_not_reused_while_a_key_exists():
    """CPython may give a new object the address of a collected one."""
    kept = set()
    for _ in range(50):
        kept.add(key_of(adding(Sampler())))
    assert len(kept) == 50


def test_functions_that_capture_themselves_have_a_key():
    def function(x):
        return function, held

    held = [function]
    held.append(held)
    assert key_of(function) == key_of(function)


def test_variables_are_found_wherever_they_are():
    one, two = keras.Variable(1.0), keras.Variable(2.0)
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    sampler = Sampler(k=two)
    _, found = kernels.captured_by(adding([one], sampler, layer, one))
    assert {id(v) for v in found} == {
        id(v) for v in (one, two, layer.kernel, layer.bias)
    }
    assert len(found) == 4


def changed_policy(model):
    model.decoder[0].attention.query.dtype_policy = "bfloat16"


def changed_lora(model):
    model.decoder[0].attention.query.lora_alpha = 9


def changed_call(model):
    layer = model.decoder[0].moe.router
    layer.call = functools.partial(type(layer).call, layer)


CHANGES = {
    "policy": changed_policy,
    "lora": lambda m: m.decoder[0].attention.query.enable_lora(2),
    "lora_alpha": changed_lora,
    "quantize": lambda m: m.quantize("int8"),
    "capacity": lambda m: setattr(m.moe_blocks[0], "eval_capacity_factor", 1.0),
    "top_k": lambda m: setattr(m.moe_blocks[0].router, "top_k", 1),
    "activation": lambda m: setattr(
        m.moe_blocks[0].experts, "activation", keras.activations.silu
    ),
    "layer": lambda m: setattr(
        m, "norm", keras.layers.LayerNormalization(name="other")
    ),
    "attribute": lambda m: setattr(m, "penalty", 1.5),
    "call": changed_call,
}


@KEPT
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_a_changed_model_has_another_key(name):
    model = MODELS["MoELanguageModel"]()
    before = key_of(adding(model))
    CHANGES[name](model)
    assert key_of(adding(model)) != before


@KEPT
def test_weights_and_training_change_no_key():
    model = MODELS["MoELanguageModel"]()
    before = key_of(adding(model))
    x = np.array([[1, 2, 3], [4, 5, 0]])
    keys = []

    class Generates(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            keys.append(key_of(adding(self.model)))

    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, x, epochs=2, verbose=0, callbacks=[Generates()])
    model.fit(x, x, epochs=1, verbose=0, callbacks=[Generates()])
    model.predict(x, verbose=0)
    model.set_weights(model.get_weights())
    model.moe_blocks[0].disable_experts([1])
    model.evaluate(x, x, verbose=0)
    assert len(keys) == 3
    assert {before, *keys, key_of(adding(model))} == {before}


@KEPT
def test_wrapped_steps_of_training_change_no_key():
    """A job of several processes wraps them while `fit` runs callbacks."""
    model = MODELS["MoELanguageModel"]()
    before = key_of(adding(model))
    with steps.around_steps(model, lambda kind, function: function):
        assert key_of(adding(model)) == before
