"""Read and assign variables that PyTorch's ranks hold whole or in parts.

E experts, N processes. The parts of FSDP2 are DTensors. Of a sharded bank of
experts, each process holds E / N.
"""

from typing import Any

import keras
import numpy as np
import torch
from torch import distributed
from torch.distributed.tensor import DTensor, distribute_tensor

from keras_moe import _keras
from keras_moe.distribution.backup.processes import Processes
from keras_moe.distribution.backup.random_states import Arrays


class TorchProcesses(Processes):
    """Use the ranks of the default process group; see `Processes`.

    Args:
        model: Model that is trained.
    """

    def __init__(self, model: keras.Model):
        if distributed.is_available() and distributed.is_initialized():
            self.index = distributed.get_rank()
            self.count = distributed.get_world_size()
        self.shards = _shards_of(model)

    def gather(self, row: np.ndarray) -> list[np.ndarray]:
        if self.count == 1:
            return [row]
        rows: list[Any] = [None] * self.count
        distributed.all_gather_object(rows, row)
        return rows

    def read(self, variable: keras.Variable) -> np.ndarray:
        value = variable.value.detach()
        if shard := self.shards.get(id(variable)):
            from keras_moe.kernels.torch.exchange import gather_shards

            value = gather_shards(value, shard.group)
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if value.dtype == torch.bfloat16:  # unknown to NumPy
            value = value.float()
        return np.asarray(value.cpu())

    def assign(self, variable: keras.Variable, array: np.ndarray) -> None:
        if shard := self.shards.get(id(variable)):
            array = np.split(array, shard.num_parts)[shard.number]
        value = variable.value.detach()
        if isinstance(value, DTensor):
            whole = torch.as_tensor(array, device=value.device)
            mesh, placements = value.device_mesh, value.placements
            parts = distribute_tensor(whole, mesh, placements)
            value.to_local().copy_(parts.to_local())
        else:
            variable.assign(array)

    def assign_whole(self, metric: keras.Variable, whole: np.ndarray) -> None:
        """Assign a whole state; only the first process has that of a sum."""
        if metric.aggregation == "sum" and self.index > 0:
            whole = np.zeros_like(whole)
        self.assign(metric, whole)

    def shape(self, variable: keras.Variable) -> tuple[int, ...]:
        shape = tuple(variable.shape)
        if shard := self.shards.get(id(variable)):
            return (shard.num_parts * shape[0], *shape[1:])
        return shape

    def random(self) -> Arrays:
        """Return the states of all generators, including PyTorch's."""
        return {**super().random(), "torch": torch.get_rng_state().numpy()}

    def set_random(self, states: Arrays) -> None:
        super().set_random(states)
        if "torch" in states:  # not if saved with another backend
            torch.set_rng_state(torch.from_numpy(states["torch"].copy()))


def _shards_of(model: keras.Model) -> dict[int, Any]:
    """Return the shard of each sharded weight and slot, by variable id."""
    banks = [
        layer
        for layer in _keras.every_layer_of(model)
        if getattr(layer, "shard", None) is not None
    ]
    if not banks:
        return {}
    from keras_moe.distribution.torch_shards import variables_of

    return {id(v): banks[0].shard for v in variables_of(model, banks)}
