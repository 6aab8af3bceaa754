"""Find the optimizers of a model."""

from collections.abc import Iterator
from typing import Any

import keras


def optimizers_of(model: keras.Model) -> Iterator[keras.optimizers.Optimizer]:
    """Yield a model's optimizer, if it is compiled, and those inside it."""
    yield from _with_inner(getattr(model, "optimizer", None))


def _with_inner(optimizer: Any) -> Iterator[keras.optimizers.Optimizer]:
    if optimizer is None:
        return
    yield optimizer
    yield from _with_inner(getattr(optimizer, "inner_optimizer", None))
    for inner in getattr(optimizer, "optimizers", ()):
        yield from _with_inner(inner)
