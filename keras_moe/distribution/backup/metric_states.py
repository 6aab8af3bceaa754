"""Save and restore the states of a model's metrics within an epoch.

R states of one variable: each process of PyTorch and each replica of TensorFlow
has a state of its own. On JAX, there is one state for all, R = 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_moe.distribution.backup.processes import Processes


class MetricStates(NamedTuple):
    """Hold the saved states of a model's metrics.

    Attributes:
        rows: List of one array `(R, ...)` per variable.
        own: Whether the R states are those of this process's replicas. If not,
            they are those of all replicas and must be combined.
    """

    rows: list[np.ndarray]
    own: bool

    def wholes(self, variables: Sequence[keras.Variable]) -> list[np.ndarray]:
        """Return the combined state of all replicas for each variable.

        Raises:
            ValueError: If the variables have other shapes than the saved ones.
        """
        self._check(variables)
        pairs = zip(self.rows, variables, strict=True)
        return [combine(rows, variable.aggregation) for rows, variable in pairs]

    def restore(
        self, variables: Sequence[keras.Variable], processes: Processes
    ) -> None:
        """Assign the states to the variables.

        Raises:
            ValueError: If the variables have other shapes than the saved ones.
        """
        self._check(variables)
        for rows, variable in zip(self.rows, variables, strict=True):
            if self.own:
                processes.assign_own(variable, rows)
            else:
                whole = combine(rows, variable.aggregation)
                processes.assign_whole(variable, whole)

    def _check(self, variables: Sequence[keras.Variable]) -> None:
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
    manifest: dict[str, Any],
    processes: Processes,
) -> MetricStates:
    """Return the states of a save for the processes that train now.

    If the number of replicas is that of the save, they are the states of this
    process's replicas, bitwise equal. Otherwise they are those of all replicas,
    which must be combined.

    Args:
        read: Function of an index that returns the states of the saved process
            of this index.
        manifest: Manifest of the save.
        processes: The processes that train now.
    """
    backend, count = manifest["backend"], manifest["processes"]
    if "schema" not in manifest and backend != "tensorflow":
        read = _with_axis(read)
    if backend == keras.backend.backend() and count == processes.count:
        rows = read(processes.index)
        if all(len(states) == processes.replicas for states in rows):
            return MetricStates(rows, own=True)
    if backend == "jax":  # each process has saved the state of all
        return MetricStates(read(0), own=False)
    parts = zip(*map(read, range(count)), strict=True)
    return MetricStates([np.concatenate(rows) for rows in parts], own=False)


def _with_axis(
    read: Callable[[int], list[np.ndarray]],
) -> Callable[[int], list[np.ndarray]]:
    """Add the axis R, which states of schema 1 do not have."""
    return lambda index: [state[None] for state in read(index)]


def combine(rows: np.ndarray, aggregation: str | None) -> np.ndarray:
    """Combine R states, `(R, ...)`, by the aggregation of their variable.

    Args:
        rows: The states.
        aggregation: `"sum"` adds states, such as totals and counts.
            `"only_first_replica"` selects the first state. Any other value
            averages them, which does not change equal states.
    """
    whole: np.ndarray
    if aggregation == "sum":
        whole = rows.sum(axis=0, dtype=_wide(rows.dtype))
    elif aggregation == "only_first_replica":
        whole = rows[0]
    else:
        whole = rows.mean(axis=0, dtype=_wide(rows.dtype))
    return whole.astype(rows.dtype, copy=False)


def _wide(dtype: np.dtype) -> str | None:
    """Return a dtype in which sums are exact or nearly exact."""
    return "float64" if dtype.kind == "f" else None
