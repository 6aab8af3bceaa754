"""Check that the callbacks of a training are in the right order."""

import inspect
import warnings
from typing import Any

import keras

# Keras's callbacks that write, or keep, all that the epoch's logs hold.
_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.History,
    keras.callbacks.ProgbarLogger,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)


def warn_of_earlier_readers(
    writer: keras.callbacks.Callback, prefix: str
) -> None:
    """Warn if callbacks before `writer` in the list miss what it logs.

    Call it from the writer's `set_model`, which Keras calls from the list
    of all callbacks.

    Args:
        writer: Callback that adds to the epoch's logs.
        prefix: str. Start of the names that it adds, such as `"moe/"`.
    """
    callbacks = _callbacks_beside(writer)
    position = [c is writer for c in callbacks].index(True) if callbacks else 0
    names = [
        type(c).__name__ for c in callbacks[:position] if _reads(c, prefix)
    ]
    if names:
        name = type(writer).__name__
        warnings.warn(
            f"`callbacks` must list {name} before the callbacks that read its "
            f"figures. Received: {', '.join(names)} before {name}, which will "
            f"not see any {prefix}* figure. Put {name} first in the list.",
            stacklevel=2,
        )


def _reads(callback: keras.callbacks.Callback, prefix: str) -> bool:
    """Return whether a callback is likely to read the epoch's logs.

    A class that is not Keras's does so if it has an `on_epoch_end`, unless its
    attribute `reads_logs` is False.
    """
    if isinstance(callback, _WRITERS):
        return True
    if str(getattr(callback, "monitor", "")).startswith(prefix):
        return True
    if isinstance(callback, keras.callbacks.LambdaCallback):
        return "on_epoch_end" in vars(callback)
    if type(callback).__module__.partition(".")[0] == "keras":
        return False
    overridden = (
        type(callback).on_epoch_end is not keras.callbacks.Callback.on_epoch_end
    )
    return overridden and bool(getattr(callback, "reads_logs", True))


def _callbacks_beside(callback: keras.callbacks.Callback) -> list[Any]:
    """Return the callbacks of the list that calls this one; else no callbacks.

    Keras does not pass the list to a callback, so that it is searched among
    the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            if any(c is callback for c in caller.callbacks):
                return list(caller.callbacks)
        frame = frame.f_back
    return []
