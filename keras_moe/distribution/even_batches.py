"""End `fit`, `evaluate`, and `predict` if processes have uneven batches.

Where a step is one of all processes, one that has fewer batches leaves the
others waiting forever, or answers their gradients with its metrics. A callback
that every such call is given notes its batches; see `referee.py`.
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
from keras_moe.distribution.referee import named_in
from keras_moe.distribution.steps import (
    around_calls,
    around_steps,
    replaced,
)
from keras_moe.distribution.watching import CONNECT, Referee, Watch

JOINED = "KERAS_MOE_JOINED"  # a file by which `launch` sees that one joined
NOT_THERE = (
    "Uneven batches: every process of a job must call `fit`, `evaluate`, or "
    "`predict` as often as the others, because each step is one of all "
    "processes. Received: a first call that not every process makes. Make the "
    "same calls everywhere."
)
UNREACHED = (
    "Uneven batches will not be noticed, and a process that has fewer leaves "
    "the others waiting: not every process reaches process 0 at {}, whose port "
    "the system chooses. Let the hosts of a job reach each other's ports."
)
_watches: list[Watch | None] = []  # of this process, one at most
_calls: list[str] = []  # that run now, the outermost first


def install() -> None:
    """Let each call of a Keras model in this job count its batches."""
    if os.environ.get(JOINED):
        pathlib.Path(os.environ[JOINED]).touch()
    around_calls("counts batches", _counted)


def connect(model: keras.Model | None = None) -> None:
    """Connect to process 0, once; all processes call it together.

    One that leaves from then on is noticed, before its first call too.

    Args:
        model: That all processes train; TensorFlow needs its strategy.
    """
    if not _watches:
        _watches.append(_connected(model))


def _counted(own, model, args, kwargs):
    name = own.__name__
    if _calls or not agreement.is_collective(model, name):
        return own(model, *args, **kwargs)
    connect(model)
    if _watches[0] is None:
        return own(model, *args, **kwargs)
    bound = inspect.signature(own).bind(model, *args, **kwargs)
    with _one_call(_watches[0], name) as watch:
        counter = BatchCounter(watch)
        given = bound.arguments.get("callbacks")
        bound.arguments["callbacks"] = _with(counter, given, model)
        with around_steps(model, counter.step), _compared(model, counter):
            result = _named(own, bound, watch)
        counter.close(name)
        return result


def _named(own, bound, watch):
    """Make a call; tell all processes of uneven batches that its error
    quotes, as TensorFlow's do."""
    try:
        return own(*bound.args, **bound.kwargs)
    except Exception as error:
        text = None if watch.fault else named_in(str(error))
        if text is not None:
            watch.tell(text)
        raise


def _with(counter, given, model):
    if isinstance(given, keras.callbacks.CallbackList):
        counter.set_model(model)
        counter.set_params(given.params)
        given.append(counter)
        return given
    if given is None:
        return [counter]
    return [counter, *(given if isinstance(given, (list, tuple)) else [given])]


@contextlib.contextmanager
def _one_call(watch: Watch, name: str) -> Iterator[Watch]:
    """Notes a call's begin and its end."""
    _calls.append(name)
    watch.progress.call += 1
    try:
        yield watch
    finally:
        watch.progress.calls_ended += 1
        _calls.pop()


def _connected(model) -> Watch | None:
    """Starts the referee in process 0; all processes call it together."""
    place = agreement.place()
    referee, first = None, [0] * 9
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
    for one in (referee, watch):
        if one is not None:
            one.start()
    return watch


def _from_first(numbers, model):
    try:
        return agreement.from_first(numbers, model)
    except agreement.failures() as error:
        raise RuntimeError(NOT_THERE) from error


def _text(token):
    return "-".join(map(str, token))


def _compared(model, counter):
    """Inside, an epoch's steps are compared before metrics bring processes
    together: where they are reset, before an epoch's callbacks, and where they
    are summed, after its last step and before its callbacks."""
    own_reset, own_result = model.reset_metrics, model.get_metrics_result

    def reset_metrics() -> None:
        counter.announce()
        own_reset()

    def get_metrics_result() -> Any:
        if agreement.is_between_steps(counter.in_step):
            counter.finish()
        return own_result()

    methods: dict[str, Callable] = {}
    if keras.backend.backend() != "torch":  # resets them alone
        methods["reset_metrics"] = reset_metrics
    if keras.backend.backend() != "jax":  # sums them alone
        methods["get_metrics_result"] = get_metrics_result
    return replaced(model, methods)


class BatchCounter(keras.callbacks.Callback):
    """Counts the batches of one call.

    Args:
        watch: Of this process.
    """

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch
        self.in_step = False
        self.open = False

    def step(self, kind: str, own: Callable) -> Callable:
        """Return a step's function that is counted.

        It may find on JAX and TensorFlow that there is no batch; PyTorch calls
        it with one.
        """

        def run(*args, **kwargs):
            self.watch.check()
            place = self.watch.progress
            place.begun += self.open
            self.in_step = True
            try:
                outputs = own(*args, **kwargs)
            finally:
                self.in_step = False
            place.ended += self.open
            return outputs

        return run

    def enter(self, name: str, planned: int | None = None) -> None:
        """Begin a section, together with the other processes."""
        self.finish()
        place = self.watch.progress
        place.name, place.planned = name, planned
        place.begun = place.ended = 0
        place.finished = False
        place.section += 1
        self.open = True
        self.watch.meet()

    def finish(self) -> None:
        """End the section, if one is open, and compare its batches."""
        if not self.open:
            return
        self.open = False
        self.watch.progress.finished = True
        self.watch.meet()

    def announce(self) -> None:
        """Wait until every process is before a further epoch."""
        if not self.open:
            self._meet_at("a further epoch")

    def close(self, name: str) -> None:
        """Wait until every process is at the end of the call."""
        self._meet_at(f"the end of `{name}`")

    def _meet_at(self, name):
        """Enter a section without batches."""
        self.enter(name)
        self.open = False
        self.watch.progress.finished = True

    def on_epoch_begin(self, epoch, logs=None):
        """Begin an epoch."""
        planned = self.params.get("steps")
        self.enter(f"epoch {epoch + 1} of `fit`", planned)

    def on_epoch_end(self, epoch, logs=None):
        """End the epoch, or the evaluation at its end."""
        self.finish()

    def on_test_begin(self, logs=None):
        """Begin an evaluation, if its steps are of all processes."""
        self.finish()
        if agreement.is_collective(self.model, "evaluate"):
            self.enter("`evaluate`")

    def on_test_end(self, logs=None):
        """End it."""
        self.finish()

    def on_predict_begin(self, logs=None):
        """Begin a prediction."""
        self.enter("`predict`", self.params.get("steps"))

    def on_predict_end(self, logs=None):
        """End it."""
        self.finish()
