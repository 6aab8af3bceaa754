"""The logs of the epochs that are over, as a save has them."""

import keras
import numpy as np


def plain(logs: dict | None) -> dict:
    """Return numbers, or lists of them, as JSON has them."""
    return {name: np.asarray(v).tolist() for name, v in (logs or {}).items()}


def show(history: keras.callbacks.History, records: list) -> None:
    """Put records, `[epoch, logs]` each, into a history in place of its own."""
    history.epoch = [epoch for epoch, _ in records]
    history.history = {}
    for _, logs in records:
        for name, value in logs.items():
            history.history.setdefault(name, []).append(value)
