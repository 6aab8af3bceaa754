"""Saving, loading, reading and setting a model that several processes hold."""

import contextlib
from collections.abc import Iterator

import keras
from torch import distributed

from keras_moe.distribution.torch_shards import whole_experts


def install(model: keras.Model) -> None:
    """Makes `save` and `save_weights` write once, and whole files.

    They, and `load_weights`, `get_weights` and `set_weights`, are to be
    called in every process: rank 0 writes, each reads whole weights.

    Args:
        model: of `data_parallel` or `shard_experts`, or both.
    """
    if isinstance(model.__dict__.get("save"), _Saving):
        return
    for name in ("save", "save_weights"):
        model.__dict__[name] = _Saving(model, getattr(model, name))
    for name in ("load_weights", "get_weights", "set_weights"):
        model.__dict__[name] = _Reading(model, getattr(model, name))


class _Saving:
    """Gathers what is shared out, and writes on rank 0."""

    def __init__(self, model, own):
        self.model, self.own = model, own

    def __call__(self, *args, **kwargs):
        with whole(self.model):
            if distributed.get_rank() == 0:
                self.own(*args, **kwargs)


class _Reading:
    """Reads everything, and leaves this process its part."""

    def __init__(self, model, own):
        self.model, self.own = model, own

    def __call__(self, *args, **kwargs):
        with whole(self.model):
            return self.own(*args, **kwargs)


@contextlib.contextmanager
def whole(model: keras.Model) -> Iterator[None]:
    """Inside, every process holds the whole model and its optimizer's slots.

    Args:
        model: of `data_parallel` or `shard_experts`; nobody waits where all
            is replicated.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(whole_experts(model))
        call = model.__dict__.get("call")
        if call is not None:
            call.settle()
        if getattr(call, "fully_sharded", False):
            stack.enter_context(call.whole())
        yield
