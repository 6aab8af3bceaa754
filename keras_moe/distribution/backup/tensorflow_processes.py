"""TensorFlow's processes: workers of a strategy, with equal weights."""

import functools

import numpy as np
import tensorflow as tf

from keras_moe.distribution.backup.processes import Processes


class TensorFlowProcesses(Processes):
    """The workers of `MultiWorkerMirroredStrategy`; see `Processes`.

    Every other strategy has its replicas in one process.
    """

    def __init__(self, strategy):
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

    def gather(self, row):
        if self.count == 1:
            return [row]
        rows = np.zeros((self.count, len(row)), "int32")  # it adds no bytes
        rows[self.index] = row
        rows = self.strategy.experimental_local_results(self._add_up(rows))[0]
        return list((rows.numpy() // self.replicas).astype("uint8"))

    @functools.cached_property
    def _add_up(self):
        """The sum over all replicas; `strategy.gather` is traced each time."""

        def add_up(rows):
            context = tf.distribute.get_replica_context()
            # What comes from outside is on no device of the replica's.
            return context.all_reduce("SUM", tf.identity(rows))

        @tf.function(input_signature=[tf.TensorSpec((None, None), "int32")])
        def run(rows):
            return self.strategy.run(add_up, (rows,))

        return run

    def read(self, variable):
        return np.asarray(variable.value)

    def assign(self, variable, array):
        with self.strategy.scope():
            variable.assign(array)

    def read_own(self, metric):
        replicas = self.strategy.experimental_local_results(metric.value)
        return np.stack([np.asarray(value) for value in replicas])

    def assign_own(self, metric, rows):
        replicas = self.strategy.experimental_local_results(metric.value)
        for value, row in zip(replicas, rows, strict=False):
            value.assign(row)

    def assign_whole(self, metric, whole):
        """A sum is counted by the first replica; it is added up over all."""
        rows = np.stack([whole] * self.replicas)
        if metric.aggregation == "sum":
            rows[0 if self.index else 1 :] = 0
        self.assign_own(metric, rows)

    def build_optimizer(self, model):
        with self.strategy.scope():
            super().build_optimizer(model)
