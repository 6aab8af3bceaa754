"""Train every row in every layout on one of two PyTorch processes.

Run `python optimizer_layouts_torch.py FOLDER ROWS LAYOUTS` with torchrun's
variables. ROWS and LAYOUTS are JSON lists; an empty list of layouts stands for
all. The weights, or the error, go to `FOLDER/RANK.npz`.
"""

import json
import os
import pathlib
import sys

import light_keras  # noqa: F401

# isort: split
import numpy as np
import torch
from optimizer_layouts import make_model, trained
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
    """Return the weights after training, or the error as text."""

    def make(row):
        return LAYOUTS[layout](make_model(row))

    return trained(row, make, RANK, 2, whole)


def main(folder, rows, layouts):
    torch.set_num_threads(1)
    initialize()
    found = {
        f"{row}:{layout}": run(row, layout)
        for row in rows
        for layout in layouts or LAYOUTS
    }
    np.savez(folder / f"{RANK}.npz", **found)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:]))
