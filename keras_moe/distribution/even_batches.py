"""End `fit`, `evaluate`, and `predict` if processes have uneven batches.

If all processes take part in each step, a process with fewer batches leaves the
others waiting forever, or sends metrics when they expect gradients. Each call
of these methods therefore gets a callback that counts its batches; see
`referee.py`.
"""

import contextlib
import inspect
import os
import pathlib
import secrets
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_moe.distribution import agreement
from keras_moe.distribution.batch_counter import BatchCounter
from keras_moe.distribution.referee import named_in
from keras_moe.distribution.steps import (
    around_calls,
    around_steps,
    replaced,
)
from keras_moe.distribution.watching import CONNECT, Referee, Watch

JOINED = "KERAS_MOE_JOINED"  # names a file that a process creates as it joins
NOT_THERE = (
    "Uneven batches: every process of a job must call `fit`, `evaluate`, or "
    "`predict` as often as the others, because all processes take part in each "
    "step. Received: a first call that not every process makes. Make the same "
    "calls in every process."
)
UNREACHED = (
    "Uneven batches will not be detected, so a process with fewer batches "
    "would leave the others waiting: not every process can reach process 0 at "
    "{}, on a port that the system chooses. Allow the hosts of a job to "
    "connect to each other on all ports."
)
_watches: list[Watch | None] = []  # of this process, at most one
_calls: list[str] = []  # the running calls, the outermost first


def install() -> None:
    """Make each call of a Keras model in this job count its batches."""
    if os.environ.get(JOINED):
        pathlib.Path(os.environ[JOINED]).touch()
    around_calls("counts batches", _counted)


def connect(model: keras.Model | None = None) -> None:
    """Connect to process 0, unless this process is connected already.

    All processes must call this function together. From then on, a process
    that leaves is detected, even before its first call.

    Args:
        model: Model that all processes train, whose strategy TensorFlow needs.
            Default: `None`, for the other backends.
    """
    if not _watches:
        _watches.append(_connected(model))


def _counted(
    own: Callable[..., Any],
    model: keras.Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Make a call of a model, and count its batches."""
    name = own.__name__
    if _calls or not agreement.is_collective(model, name):
        return own(model, *args, **kwargs)
    connect(model)
    watch = _watches[0]
    if watch is None:
        return own(model, *args, **kwargs)
    bound = inspect.signature(own).bind(model, *args, **kwargs)
    with _one_call(watch, name):
        counter = BatchCounter(watch)
        given = bound.arguments.get("callbacks")
        bound.arguments["callbacks"] = _with(counter, given, model)
        with around_steps(model, counter.step), _compared(model, counter):
            result = _named(own, bound, watch)
        counter.close(name)
        return result


def _named(
    own: Callable[..., Any], bound: inspect.BoundArguments, watch: Watch
) -> Any:
    """Make a call, and report uneven batches that its error quotes.

    Errors of TensorFlow quote the message of the process that failed.
    """
    try:
        return own(*bound.args, **bound.kwargs)
    except Exception as error:
        text = None if watch.fault else named_in(str(error))
        if text is not None:
            watch.tell(text)
        raise


def _with(counter: BatchCounter, given: Any, model: keras.Model) -> Any:
    """Return the callbacks of a call, with the counter."""
    if isinstance(given, keras.callbacks.CallbackList):
        counter.set_model(model)
        counter.set_params(given.params)
        given.append(counter)
        return given
    if given is None:
        return [counter]
    return [counter, *(given if isinstance(given, (list, tuple)) else [given])]


@contextlib.contextmanager
def _one_call(watch: Watch, name: str) -> Iterator[None]:
    """Record the start and the end of a call."""
    _calls.append(name)
    watch.progress.call += 1
    try:
        yield
    finally:
        watch.progress.calls_ended += 1
        _calls.pop()


def _connected(model: keras.Model | None) -> Watch | None:
    """Start the referee in process 0, and connect every process to it.

    All processes must call this function together. It returns `None` if one
    of them cannot connect.
    """
    place = agreement.place()
    referee: Referee | None = None
    first = [0] * 9
    if place.number == 0:
        token = [secrets.randbelow(2**15) for _ in range(4)]
        referee = Referee(place.processes, _text(token))
        first = [referee.port, *token, *agreement.own_address()]
    port, *rest = _from_first(first, model)
    host = place.host or ".".join(map(str, rest[4:]))
    watch = None
    with contextlib.suppress(OSError):
        watch = Watch(host, port, _text(rest[:4]), place.number)
    all_there = referee is not None and referee.has_all(CONNECT)
    if not _from_first([int(all_there)], model)[0]:
        if watch is not None:
            watch.connection.close()
        if referee is not None:
            warnings.warn(UNREACHED.format(host), stacklevel=2)
        return None
    if referee is not None:
        referee.start()
    if watch is not None:
        watch.start()
    return watch


def _from_first(numbers: list[int], model: keras.Model | None) -> list[int]:
    try:
        return agreement.from_first(numbers, model)
    except agreement.failures() as error:
        raise RuntimeError(NOT_THERE) from error


def _text(token: list[int]) -> str:
    return "-".join(map(str, token))


def _compared(
    model: keras.Model, counter: BatchCounter
) -> contextlib.AbstractContextManager[None]:
    """Compare the steps of an epoch before metrics synchronize processes.

    Keras resets metrics before the callbacks of an epoch's start, and sums
    them between an epoch's last step and the callbacks of its end.
    """
    own_reset, own_result = model.reset_metrics, model.get_metrics_result

    def reset_metrics() -> None:
        counter.announce()
        own_reset()

    def get_metrics_result() -> Any:
        if agreement.is_between_steps(counter.in_step):
            counter.finish()
        return own_result()

    methods: dict[str, Callable[..., Any]] = {}
    if keras.backend.backend() != "torch":  # each process resets its own
        methods["reset_metrics"] = reset_metrics
    if keras.backend.backend() != "jax":  # each process sums its own
        methods["get_metrics_result"] = get_metrics_result
    return replaced(model, methods)
