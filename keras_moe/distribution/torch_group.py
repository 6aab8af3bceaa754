"""Join the processes of `torch.distributed` that train together."""

import os

from torch import distributed

from keras_moe.distribution import even_batches
from keras_moe.distribution.environment import initialize

TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def join(caller: str) -> int:
    """Join the process group, unless that has happened, and return its size.

    Args:
        caller: Name of the public function that needs the group.

    Raises:
        RuntimeError: If torchrun's variables are not set.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        missing = [name for name in TORCHRUN if name not in os.environ]
        if missing:
            raise RuntimeError(
                f"`{caller}` must run in a process that torchrun started, or "
                "after torch.distributed.init_process_group. Received: a "
                f"process without {', '.join(missing)}. Start the script with "
                "`keras-moe launch --backend torch --processes 2 script.py`, "
                "or `torchrun --nproc-per-node 2 script.py`."
            )
        initialize()
    even_batches.install()
    return distributed.get_world_size()
