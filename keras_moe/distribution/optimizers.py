"""Find the optimizers by which a model is trained."""

from collections.abc import Iterator

import keras


def optimizers_of(model: keras.Model) -> Iterator[keras.optimizers.Optimizer]:
    """Yield a model's optimizer and those inside it; none if not compiled."""
    yield from _with_inner(getattr(model, "optimizer", None))


def _with_inner(optimizer):
    if optimizer is None:
        return
    yield optimizer
    yield from _with_inner(getattr(optimizer, "inner_optimizer", None))
    for inner in getattr(optimizer, "optimizers", ()):
        yield from _with_inner(inner)
