"""Read and assign variables in the workers of a TensorFlow strategy."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_moe.distribution.backup.processes import Processes
from keras_moe.types import Tensor


class TensorFlowProcesses(Processes):
    """Use the workers of `MultiWorkerMirroredStrategy`; see `Processes`.

    All replicas of any other strategy are in one process.

    Args:
        strategy: The `tf.distribute.Strategy` of the model.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        resolver = strategy.cluster_resolver
        spec = resolver.cluster_spec().as_dict() if resolver else {}
        workers = [
            (job, number)
            for job in ("chief", "worker")
            for number in range(len(spec.get(job, ())))
        ]
        if len(workers) > 1:
            self.count = len(workers)
            self.index = workers.index((resolver.task_type, resolver.task_id))
        self.replicas = strategy.num_replicas_in_sync // self.count

    def gather(self, row: np.ndarray) -> list[np.ndarray]:
        if self.count == 1:
            return [row]
        rows = np.zeros((self.count, len(row)), "int32")  # not summed as bytes
        rows[self.index] = row
        rows = self.strategy.experimental_local_results(self._add_up(rows))[0]
        return list((rows.numpy() // self.replicas).astype("uint8"))

    @functools.cached_property
    def _add_up(self) -> Callable[[Tensor], Tensor]:
        """Function that sums over all replicas, traced only once.

        `strategy.gather` would be traced in each call.
        """

        def add_up(rows: Tensor) -> Tensor:
            context = tf.distribute.get_replica_context()
            # The copy is on the replica's device.
            return context.all_reduce("SUM", tf.identity(rows))

        def run(rows: Tensor) -> Tensor:
            return self.strategy.run(add_up, (rows,))

        signature = [tf.TensorSpec((None, None), "int32")]
        traced: Callable[[Tensor], Tensor] = tf.function(run, signature)
        return traced

    def read(self, variable: keras.Variable) -> np.ndarray:
        return np.asarray(variable.value)

    def assign(self, variable: keras.Variable, array: np.ndarray) -> None:
        with self.strategy.scope():
            variable.assign(array)

    def read_own(self, metric: keras.Variable) -> np.ndarray:
        replicas = self.strategy.experimental_local_results(metric.value)
        return np.stack([np.asarray(value) for value in replicas])

    def assign_own(self, metric: keras.Variable, rows: np.ndarray) -> None:
        replicas = self.strategy.experimental_local_results(metric.value)
        for value, row in zip(replicas, rows, strict=False):
            value.assign(row)

    def assign_whole(self, metric: keras.Variable, whole: np.ndarray) -> None:
        """Assign a whole state; only the first replica has that of a sum."""
        rows = np.stack([whole] * self.replicas)
        if metric.aggregation == "sum":
            rows[0 if self.index else 1 :] = 0
        self.assign_own(metric, rows)

    def build_optimizer(self, model: keras.Model) -> None:
        with self.strategy.scope():
            super().build_optimizer(model)
