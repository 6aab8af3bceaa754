"""PyTorch: sums over the processes of `torch.distributed`."""

import torch

from keras_moe.types import Tensor


def sum_over_replicas(x: Tensor) -> Tensor:
    """Over the processes of `torch.distributed`, where it is initialised."""
    if num_replicas() == 1:
        return x
    x = x.detach().clone()
    torch.distributed.all_reduce(x)
    return x


def num_replicas() -> int:
    """The processes of `torch.distributed`."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()
