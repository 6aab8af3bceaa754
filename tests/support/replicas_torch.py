"""Run two processes of torch.distributed.

Run `python replicas_torch.py FOLDER`.
"""

import pathlib
import sys

import light_keras  # noqa: F401
import numpy as np
import torch


def main(rank, folder):
    import replica_step

    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
    )
    found = replica_step.routers()
    x = [
        torch.tensor(replica_step.inputs(rank, even)) for even in (True, False)
    ]
    losses = replica_step.step(found, *map(torch.tensor, x))
    tokens, mask = map(torch.tensor, replica_step.padded(rank))
    losses |= replica_step.padded_losses(tokens, mask)
    losses |= replica_step.own_losses(found, tokens, mask)
    arrays = {name: loss.detach().numpy() for name, loss in losses.items()}
    for name in ("even", "uneven"):
        arrays[name] = found[name].expert_bias_weight.numpy()
    np.savez(pathlib.Path(folder) / f"{rank}.npz", **arrays)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
