"""Save, load, read, and set the weights that several processes hold."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from torch import distributed

from keras_moe.distribution.torch_shards import whole_experts


def install(model: keras.Model) -> None:
    """Make `save` and `save_weights` write one file with whole weights.

    They, `load_weights`, `get_weights`, and `set_weights` must then be called
    in every process. Rank 0 writes, and each process reads whole weights.

    Args:
        model: Model that was passed to `data_parallel`, `shard_experts`, or
            both.
    """
    if isinstance(model.__dict__.get("save"), _Saving):
        return
    for name in ("save", "save_weights"):
        model.__dict__[name] = _Saving(model, getattr(model, name))
    for name in ("load_weights", "get_weights", "set_weights"):
        model.__dict__[name] = _Reading(model, getattr(model, name))


class _Saving:
    """Gather what is sharded, and write in rank 0."""

    def __init__(self, model: keras.Model, own: Callable[..., Any]):
        self.model, self.own = model, own

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        with whole(self.model):
            if distributed.get_rank() == 0:
                self.own(*args, **kwargs)


class _Reading:
    """Read or set whole weights, and keep this process's part."""

    def __init__(self, model: keras.Model, own: Callable[..., Any]):
        self.model, self.own = model, own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with whole(self.model):
            return self.own(*args, **kwargs)


@contextlib.contextmanager
def whole(model: keras.Model) -> Iterator[None]:
    """Make a model and its optimizer slots whole in every process inside.

    Args:
        model: Model that was passed to `data_parallel` or `shard_experts`. No
            process waits for others if nothing is sharded.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(whole_experts(model))
        call = model.__dict__.get("call")
        if call is not None:
            call.settle()
        if getattr(call, "fully_sharded", False):
            stack.enter_context(call.whole())
        yield
