"""Test that every public class and function has an example that runs."""

import inspect
import re
import textwrap

import keras
import numpy as np
import pytest
from keras import ops

import keras_moe
from keras_moe import (
    callbacks,
    compress,
    ensemble,
    layers,
    losses,
    metrics,
    model_surgery,
    models,
    routing,
    training,
)

pytestmark = pytest.mark.one_backend

MODULES = (keras_moe, layers, losses, metrics, models, model_surgery)
MODULES += (callbacks, compress, ensemble, routing, training)
NAMES = {"keras": keras, "keras_moe": keras_moe, "np": np, "ops": ops}
# Base classes and parts that users do not make themselves.
WITHOUT = {"Blocks", "MeanPooling", "MoEModel", "PositionEmbedding"}
WITHOUT |= {"TokenEmbedding"}


def public():
    """Return what the public modules list or, without a list, define."""
    found = {}
    for module in MODULES:
        listed = getattr(module, "__all__", None)
        for name, thing in vars(module).items():
            if not (inspect.isclass(thing) or inspect.isfunction(thing)):
                continue
            here = thing.__module__ == module.__name__
            if name in listed if listed is not None else here:
                if not name.startswith("_"):
                    found[name] = thing
    return found


PUBLIC = public()


def examples_of(thing):
    text = inspect.cleandoc(thing.__doc__ or "")
    blocks = re.findall(
        r"^Example:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    return [textwrap.dedent(block) for block in blocks]


def test_every_public_name_has_an_example():
    missing = {name for name, thing in PUBLIC.items() if not examples_of(thing)}
    assert missing <= WITHOUT
    assert len(PUBLIC) > 90


@pytest.mark.parametrize("name", sorted(PUBLIC))
@pytest.mark.filterwarnings("ignore:`max_experts`", "ignore:Expert choice")
def test_the_example_runs(name):
    for block in examples_of(PUBLIC[name]):
        exec(compile(block, name, "exec"), {**NAMES, "routing": routing})
