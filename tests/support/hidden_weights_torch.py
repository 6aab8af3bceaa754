"""Train the cases of `hidden_weights.py` on one of two PyTorch processes.

Run `python hidden_weights_torch.py FOLDER CASE ...` with torchrun's variables.
The losses go to `FOLDER/RANK.npz`.
"""

import os
import pathlib
import sys

import light_keras  # noqa: F401

# isort: split
import hidden_weights
import numpy as np
import torch
from torch import distributed

from keras_moe.distribution import data_parallel, shard_experts

RANK = int(os.environ["RANK"])


def with_members(model):
    """Make members data-parallel by themselves, before and after the whole."""
    data_parallel(model.models[0])
    data_parallel(model)
    data_parallel(model.models[1])
    return model


WRAPPERS = {
    "replicas": data_parallel,
    "members": with_members,
    "experts": lambda model: data_parallel(shard_experts(model)),
    "parts": lambda model: data_parallel(model, fully_sharded=True),
}
# The layouts in which each case is trained.
LAYOUTS = {
    "weighted": ("replicas", "parts"),
    "stacking": ("replicas",),
    "fit_members": ("replicas", "members"),
    "snapshot": ("experts",),
    "together": ("members",),
    "distiller": ("replicas",),
    "own class": ("replicas", "parts"),
}


def message_of(function):
    try:
        function()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def fitted_part():
    """Fit a member of a fully sharded ensemble alone."""
    whole = hidden_weights.ensemble("weighted", train_members=True)
    data_parallel(whole, fully_sharded=True)
    member = whole.models[1]
    member.compile("sgd", "mse")
    member.fit(*hidden_weights.make_data(), verbose=0)


def sharded_part():
    whole = data_parallel(hidden_weights.ensemble("weighted"))
    data_parallel(whole.models[0], fully_sharded=True)


def around_a_sharded_part():
    member = data_parallel(hidden_weights.dense(), fully_sharded=True)
    whole = hidden_weights.ensemble("weighted", (lambda: member,))
    data_parallel(whole)


def nothing_to_shard():
    data_parallel(hidden_weights.ensemble("mean"), fully_sharded=True)


def main(folder, names):
    torch.set_num_threads(1)
    rows, batch = slice(RANK, None, 2), hidden_weights.BATCH // 2
    found = {
        f"{name}:{layout}": hidden_weights.train(
            name, rows, batch, WRAPPERS[layout]
        )
        for name in names
        for layout in LAYOUTS[name]
    }
    for function in (
        fitted_part,
        sharded_part,
        around_a_sharded_part,
        nothing_to_shard,
    ):
        found[f"errors:{function.__name__}"] = message_of(function)
    np.savez(folder / f"{RANK}.npz", **found)
    distributed.destroy_process_group()


if __name__ == "__main__":
    data_parallel(hidden_weights.dense())  # joins the group
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
