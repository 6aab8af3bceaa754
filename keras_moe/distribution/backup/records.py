"""Convert the logs of finished epochs for a save, and restore them."""

from typing import Any

import keras
import numpy as np


def plain(logs: dict[str, Any] | None) -> dict[str, Any]:
    """Return logs as plain numbers, or lists of them, for JSON."""
    return {name: np.asarray(v).tolist() for name, v in (logs or {}).items()}


def show(history: keras.callbacks.History, records: list[list[Any]]) -> None:
    """Replace the records of a history by others, `[epoch, logs]` each."""
    history.epoch = [epoch for epoch, _ in records]
    history.history = {}
    for _, logs in records:
        for name, value in logs.items():
            history.history.setdefault(name, []).append(value)
