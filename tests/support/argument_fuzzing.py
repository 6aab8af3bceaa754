"""Draw wrong arguments, and state which of them a parameter may accept.

The rule for an argument follows from its annotation: an integer, a number, a
Boolean, or a choice. An argument without an annotation may accept anything,
but must not fail without a message that names the argument.
"""

import inspect
import math
import numbers
import types
import typing
from fractions import Fraction

import keras
import numpy as np

from keras_moe import (
    ensemble,
    losses,
    routing,
)
from keras_moe.layers.null_experts import NULL_OUTPUTS

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule

# Keras checks its own arguments.
NOT_FUZZED = {
    "self",
    "name",
    "dtype",
    "kwargs",
    "args",
    "inputs",
    "outputs",
    "arguments",
}
ANY_TEXT = {"directory", "script"}
CHOICES = {
    "backend": ("jax", "tensorflow", "torch"),
    "by": ("load", "weight", "saliency", "average"),
    "cluster": ("slurm", "kubernetes", "gke-tpu", "ray"),
    "granularity": ("unstructured", "structured"),
    "group_score": routing.GROUP_SCORES,
    "kind": losses.LOAD_BALANCING,
    "level": ("token", "example"),
    "load_balancing": losses.LOAD_BALANCING,
    "method": ("hash", "modulo", "round_robin", *ensemble.METHODS),
    "null_outputs": NULL_OUTPUTS,
    "positions": ("rotary", "learned"),
    "priority": routing.PRIORITIES,
    "scoring": routing.SCORINGS,
    "second_expert": routing.SECOND_EXPERTS,
    "weights_on": ("outputs", "inputs"),
}


class Thing:
    """An object that no argument accepts."""

    def __repr__(self):
        return "Thing()"


def junk(rng):
    """Return a random value that is rarely valid."""
    values = [
        *(None, True, False, 0, 1, 2, 3, 5, -1, 1.0, 2.5, -0.5, 0.3),
        *(math.nan, math.inf, -math.inf, 1j, "x", "False", "", "2", b"x"),
        *([], [1, 2], [0.1, 0.2], ["x"], (), (1,), {}, {"a": 1}, set(), {1}),
        *(np.int64(2), np.int32(0), np.float32(0.5), np.float64(2), np.nan),
        *(np.bool_(True), np.str_("x"), np.array(2), np.array([1, 2])),
        *(Fraction(1, 2), range(3), Ellipsis, Thing(), Thing, len),
        *("mean", "softmax", "token", "relu", "zeros", "l2", "adam", "mse"),
        *(np.random.default_rng(0), slice(2), frozenset({1}), 7, 1e-3),
    ]
    return values[rng.integers(len(values))]


def parameters_of(call):
    """Return the parameters by name, including those of base classes."""
    if not inspect.isclass(call):
        return dict(inspect.signature(call).parameters)
    found: dict = {}
    for base in call.__mro__:
        if not base.__module__.startswith("keras_moe"):
            break
        if "__init__" in vars(base):
            for p in inspect.signature(
                vars(base)["__init__"]
            ).parameters.values():
                found.setdefault(p.name, p)
    fixed = getattr(call, "fixed_arguments", ())
    return {n: p for n, p in found.items() if n not in fixed}


def fuzzed_names(call, valid):
    """Return the names of the arguments that the fuzzer replaces."""
    return [
        name
        for name, p in parameters_of(call).items()
        if name not in NOT_FUZZED
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and not isinstance(valid.get(name), np.ndarray)
        and p.annotation not in (typing.Any, typing.Any | None)
    ]


def filled(valid, **replaced):
    """Return the arguments of one call; call the functions that make them."""
    given = {**valid, **replaced}
    return {
        name: value()
        if name in valid and is_maker(valid[name], value)
        else value
        for name, value in given.items()
    }


def is_maker(valid, value):
    return value is valid and isinstance(value, types.FunctionType)


def is_allowed(name, parameter, value):
    """Return whether the annotation of an argument allows a value."""
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    kinds = [kind for kind in kinds if kind is not LearningRateSchedule]
    known = {int, float, bool, str, type(None)}
    if not known.issuperset(kinds):
        return True
    if value is None:
        return type(None) in kinds or parameter.default is None
    if isinstance(value, (bool, np.bool_)):
        return bool in kinds
    if isinstance(value, numbers.Integral):
        return int in kinds or float in kinds
    if isinstance(value, numbers.Real):
        return float in kinds and math.isfinite(value)
    if isinstance(value, str) and str in kinds:
        return name in ANY_TEXT or value in CHOICES.get(name, ())
    return False
