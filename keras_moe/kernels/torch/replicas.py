"""PyTorch: sums over the processes of `torch.distributed`."""

import torch

from keras_moe.types import Tensor


def sum_over_replicas(x: Tensor) -> Tensor:
    """Sum over the processes of `torch.distributed`, if it is initialized."""
    if num_replicas() == 1:
        return x
    x = x.detach().clone()
    torch.distributed.all_reduce(x)
    return x


def num_replicas() -> int:
    """Return the number of processes, 1 if `torch.distributed` does not run."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()
