"""Going through the batches of an epoch again that were trained before.

`fit` begins with an epoch's first batch. Up to the batch of the save its steps
take their data and compute nothing: whatever order the data come in, they are
then where they were.
"""

import keras

from keras_moe.distribution.backup.metric_states import MetricStates
from keras_moe.distribution.backup.processes import Processes
from keras_moe.distribution.backup.state import Own


class Replay:
    """Steps without computing, in place of the model's `train_function`.

    After the last of them the metrics and the generators are as they were
    saved, and the model's own function is back.

    Args:
        model: the model that trains.
        processes: that train it.
        batches: how many of the epoch's batches were trained, 1 or more.
        own: what this process had then.
        metrics: what the metrics had counted then.
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
            ValueError: that names both numbers.
        """
        if self.taken >= self.batches:
            return
        self.model.train_function = self.train_function
        raise ValueError(
            "`fit` must be given the data of the backup, which is within an "
            f"epoch. Received: an epoch of {self.taken} batches, of which "
            f"{self.batches} were trained before. Pass the same data in the "
            "same global batches."
        )

    def _jax(self, state, iterator):
        """The metrics are part of the state; the variables are empty now."""
        self._take(iterator)
        if self._is_last():
            wholes = self.metrics.wholes(self.model.metrics_variables)
            pairs = zip(wholes, state[3], strict=True)
            metrics = [self.processes.place(a, like=v) for a, v in pairs]
            state = (*state[:3], metrics)
        return dict(self.own.logs), state

    def _torch(self, data):
        return self._finish_step()

    def _tensorflow(self, iterator):
        """Has the metrics built, too, which is a first step's work."""
        batch = self._take(iterator)
        if len(self.model.metrics_variables) < len(self.metrics.rows):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            self.model.test_on_batch(x, y, weight)
        return self._finish_step()

    def _take(self, iterator):
        """Returns the last of the batches that one step would take."""
        batch = next(iterator)
        for _ in range(self.model.steps_per_execution - 1):
            batch = next(iterator, batch)
        return batch

    def _finish_step(self):
        if self._is_last():
            variables = self.model.metrics_variables
            self.metrics.restore(variables, self.processes)
        return dict(self.own.logs)

    def _is_last(self):
        """Counts a step; after the last one the model computes again."""
        self.taken += self.model.steps_per_execution
        if self.taken < self.batches:
            return False
        self.model.train_function = self.train_function
        self.processes.set_random(self.own.random)
        return True
