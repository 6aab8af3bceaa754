"""Skip the batches of an epoch that were trained before.

`fit` starts with the first batch of an epoch. Up to the batch of the save, its
steps read their data and compute nothing, so that data in any order continue
where they were.
"""

from collections.abc import Iterator
from typing import Any

import keras

from keras_moe.distribution.backup.metric_states import MetricStates
from keras_moe.distribution.backup.processes import Processes
from keras_moe.distribution.backup.state import Own


class Replay:
    """Replace the model's `train_function` by steps that compute nothing.

    After the last of them, the metrics and the generators have their saved
    states, and the model's own function is restored.

    Args:
        model: Model that is trained.
        processes: The processes of the training.
        batches: Number of the epoch's batches that were trained, 1 or more.
        own: The saved state of this process.
        metrics: The saved states of the metrics.
    """

    def __init__(
        self,
        model: keras.Model,
        processes: Processes,
        batches: int,
        own: Own,
        metrics: MetricStates,
    ):
        self.model, self.processes = model, processes
        self.batches, self.own, self.taken = batches, own, 0
        self.metrics = metrics
        self.train_function = model.train_function
        steps = {
            "jax": self._jax,
            "tensorflow": self._tensorflow,
            "torch": self._torch,
        }
        model.train_function = steps[keras.backend.backend()]

    def check_finished(self) -> None:
        """Raise if the epoch ended before all batches were skipped.

        Raises:
            ValueError: If the epoch has fewer batches than were trained.
        """
        if self.taken >= self.batches:
            return
        self.model.train_function = self.train_function
        raise ValueError(
            "`fit` must receive the data of the backup, which is within an "
            f"epoch. Received: an epoch of {self.taken} batches, but "
            f"{self.batches} were trained before. Pass the same data in the "
            "same global batches."
        )

    def _jax(
        self, state: tuple[Any, ...], iterator: Iterator[Any]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Skip a step, whose state includes the values of the metrics."""
        self._take(iterator)
        if self._is_last():
            wholes = self.metrics.wholes(self.model.metrics_variables)
            pairs = zip(wholes, state[3], strict=True)
            metrics = [self.processes.place(a, like=v) for a, v in pairs]
            state = (*state[:3], metrics)
        return dict(self.own.logs), state

    def _torch(self, data: Any) -> dict[str, Any]:
        return self._finish_step()

    def _tensorflow(self, iterator: Iterator[Any]) -> dict[str, Any]:
        """Skip a step, and build the metrics if no step has built them."""
        batch = self._take(iterator)
        if len(self.model.metrics_variables) < len(self.metrics.rows):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            self.model.test_on_batch(x, y, weight)
        return self._finish_step()

    def _take(self, iterator: Iterator[Any]) -> Any:
        """Read the batches of one step, and return the last of them."""
        batch = next(iterator)
        for _ in range(self.model.steps_per_execution - 1):
            batch = next(iterator, batch)
        return batch

    def _finish_step(self) -> dict[str, Any]:
        if self._is_last():
            variables = self.model.metrics_variables
            self.metrics.restore(variables, self.processes)
        return dict(self.own.logs)

    def _is_last(self) -> bool:
        """Count a step, and end the replay if it is the last one."""
        self.taken += self.model.steps_per_execution
        if self.taken < self.batches:
            return False
        self.model.train_function = self.train_function
        self.processes.set_random(self.own.random)
        return True
