"""One of two PyTorch processes that train every row in every layout.

`python optimizer_layouts_torch.py FOLDER ROW ...` with torchrun's variables.
The weights, or the error, go to `FOLDER/RANK.npz`.
"""

import os
import pathlib
import sys

import no_tensorflow  # noqa: F401
import numpy as np
import optimizer_layouts
import torch
from torch import distributed

from keras_moe.distribution import data_parallel, initialize, shard_experts
from keras_moe.distribution.torch_saving import whole

RANK = int(os.environ["RANK"])
LAYOUTS = {
    "replicas": data_parallel,
    "fully_sharded": lambda model: data_parallel(model, fully_sharded=True),
    "shard_experts": lambda model: data_parallel(shard_experts(model)),
    "shard_experts(processes=1)": lambda model: data_parallel(
        shard_experts(model, 1)
    ),
    "shard_experts, fully_sharded": lambda model: data_parallel(
        shard_experts(model), fully_sharded=True
    ),
}


def run(row, layout):
    """The weights after training, or the error as text."""
    model = optimizer_layouts.make_model(row)
    try:
        LAYOUTS[layout](model)
        optimizer_layouts.train(model, RANK, 2)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with whole(model):
        return optimizer_layouts.weights_of(model)


def main(folder, rows):
    torch.set_num_threads(1)
    initialize()
    found = {
        f"{row}:{layout}": run(row, layout)
        for row in rows
        for layout in LAYOUTS
    }
    np.savez(folder / f"{RANK}.npz", **found)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
