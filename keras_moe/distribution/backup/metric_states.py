"""What a model's metrics have counted within an epoch.

R states of one variable: each process of PyTorch counts by itself, and each
replica of TensorFlow. JAX counts once for all, R = 1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_moe.distribution.backup.processes import Processes


class MetricStates(NamedTuple):
    """The saved states of a model's metrics.

    Attributes:
        rows: for each variable an array `(R, ...)`.
        own: whether they belong to this process's replicas, one by one.
            Otherwise they are those of all, to be combined.
    """

    rows: list[np.ndarray]
    own: bool

    def wholes(self, variables: Sequence[keras.Variable]) -> list[np.ndarray]:
        """Return what all replicas together have counted, by variable.

        Raises:
            ValueError: if the variables are not those that were saved.
        """
        self._check(variables)
        pairs = zip(self.rows, variables, strict=True)
        return [combine(rows, variable.aggregation) for rows, variable in pairs]

    def restore(
        self, variables: Sequence[keras.Variable], processes: Processes
    ) -> None:
        """Give the variables their states.

        Raises:
            ValueError: if the variables are not those that were saved.
        """
        self._check(variables)
        for rows, variable in zip(self.rows, variables, strict=True):
            if self.own:
                processes.assign_own(variable, rows)
            else:
                whole = combine(rows, variable.aggregation)
                processes.assign_whole(variable, whole)

    def _check(self, variables):
        there = [list(rows.shape[1:]) for rows in self.rows]
        here = [list(variable.shape) for variable in variables]
        if there != here:
            raise ValueError(
                "`metrics` must be those of the backup, which is within an "
                f"epoch. Received: states of the shapes {there} there and "
                f"{here} here. Compile the model with the same loss and "
                "metrics."
            )


def saved_states(
    read: Callable[[int], list[np.ndarray]],
    manifest: dict,
    processes: Processes,
) -> MetricStates:
    """Return the states of a save, for the processes that train now.

    They are this process's own if as many replicas train as before, and then
    bitwise equal. Otherwise they are those of all replicas, to be combined.

    Args:
        read: function that returns the metrics of the saved process `index`.
        manifest: of the save.
        processes: that train now.
    """
    backend, count = manifest["backend"], manifest["processes"]
    if "schema" not in manifest and backend != "tensorflow":
        read = _with_axis(read)
    if backend == keras.backend.backend() and count == processes.count:
        rows = read(processes.index)
        if all(len(states) == processes.replicas for states in rows):
            return MetricStates(rows, own=True)
    if backend == "jax":  # each process has saved what all have counted
        return MetricStates(read(0), own=False)
    parts = zip(*map(read, range(count)), strict=True)
    return MetricStates([np.concatenate(rows) for rows in parts], own=False)


def _with_axis(read):
    """The first schema had one state without the axis R."""
    return lambda index: [state[None] for state in read(index)]


def combine(rows: np.ndarray, aggregation: str | None) -> np.ndarray:
    """Return one state of R, `(R, ...)`, by their variable's aggregation.

    Totals and counts add up ("sum"). "only_first_replica" takes the first;
    whatever else is averaged, of equal states one of them.
    """
    if aggregation == "sum":
        return rows.sum(axis=0, dtype=_wide(rows.dtype)).astype(rows.dtype)
    if aggregation == "only_first_replica":
        return rows[0]
    return rows.mean(axis=0, dtype=_wide(rows.dtype)).astype(rows.dtype)


def _wide(dtype):
    """Return a dtype in which sums are exact, or almost."""
    return "float64" if dtype.kind == "f" else None
