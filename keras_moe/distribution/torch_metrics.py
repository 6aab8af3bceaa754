"""Compute metrics over the batches of all processes, on PyTorch."""

from typing import Any

import keras
import torch
from keras import ops
from torch import distributed

from keras_moe.distribution.torch_replicas import add_up


class ReplicatedMetrics:
    """Compute a model's metrics over the batches of all processes.

    The state of a Keras metric is a sum: of totals, of counts, or a confusion
    matrix. States are summed over the processes, and results are computed from
    the sums, so that even an AUC is exact. A state with another `aggregation`
    is that of the first process ("only_first_replica") or the mean of all.

    Args:
        model: Model that `data_parallel` trains.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.testing = False

    def install(self) -> None:
        """Replace `get_metrics_result` and `test_step` of the model."""
        self.own_result = self.model.get_metrics_result
        self.own_test_step = self.model.test_step
        self.model.__dict__["get_metrics_result"] = self.result
        self.model.__dict__["test_step"] = self.test_step

    def test_step(self, data: Any) -> Any:
        """Evaluate one batch. Its logs are those of this process."""
        self.testing = True
        try:
            with self.model.__dict__["call"].test_step():
                return self.own_test_step(data)
        finally:
            self.testing = False

    def result(self) -> Any:
        """Return `get_metrics_result` of the batches of all processes."""
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
    """Aggregate the values of metric states over all processes, in place.

    Args:
        pairs: Variables, whose `aggregation` is used, and their values.
    """
    for variable, value in pairs:
        if variable.aggregation == "only_first_replica":
            value *= distributed.get_rank() == 0
    add_up([value for _, value in pairs])
    for variable, value in pairs:
        if variable.aggregation not in ("sum", "only_first_replica"):
            value.copy_(value / distributed.get_world_size())
