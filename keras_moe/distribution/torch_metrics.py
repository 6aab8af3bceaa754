"""Metrics of the batches of all processes."""

import keras
import torch
from keras import ops
from torch import distributed

from keras_moe.distribution.torch_replicas import add_up


class ReplicatedMetrics:
    """A model's metrics, of the batches of all processes.

    A Keras metric adds up: totals, counts, a confusion matrix. The states are
    summed over the processes and the results computed of the sums, so that
    also an AUC is exact. A state that declares another `aggregation` is the
    first process's ("only_first_replica") or the mean of all.
    """

    def __init__(self, model):
        self.model = model
        self.testing = False

    def install(self):
        """Takes the place of the model's methods."""
        self.own_result = self.model.get_metrics_result
        self.own_test_step = self.model.test_step
        self.model.__dict__["get_metrics_result"] = self.result
        self.model.__dict__["test_step"] = self.test_step

    def test_step(self, data):
        """One batch's logs are the process's own: no process waits."""
        self.testing = True
        try:
            with self.model.__dict__["call"].test_step():
                return self.own_test_step(data)
        finally:
            self.testing = False

    def result(self) -> dict:
        """What `keras.Model.get_metrics_result` returns, of all processes."""
        variables = [v for m in self.model.metrics for v in m.variables]
        values = [ops.convert_to_tensor(v) for v in variables]
        if self.testing or not values or values[0].is_meta:
            return self.own_result()
        self.model.__dict__["call"].settle()
        values = [value.detach().clone() for value in values]
        pairs = list(zip(variables, values, strict=True))
        combine(pairs)
        with keras.StatelessScope(state_mapping=pairs):
            return self.own_result()


def combine(pairs: list[tuple[keras.Variable, torch.Tensor]]) -> None:
    """Replace states by those of all processes, by their `aggregation`."""
    for variable, value in pairs:
        if variable.aggregation == "only_first_replica":
            value *= distributed.get_rank() == 0
    add_up([value for _, value in pairs])
    for variable, value in pairs:
        if variable.aggregation not in ("sum", "only_first_replica"):
            value.copy_(value / distributed.get_world_size())
