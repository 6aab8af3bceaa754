"""Train every row in every layout of four virtual devices of JAX.

Run `python optimizer_layouts_jax.py FOLDER ROWS LAYOUTS`. ROWS and LAYOUTS are
JSON lists; an empty list of layouts stands for all. The weights, or the error,
go to `FOLDER/0.npz`.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
)

import light_keras  # noqa: F401

# isort: split
import numpy as np
from optimizer_layouts import make_model, trained

from keras_moe.distribution import expert_parallel

LAYOUTS = {
    "data=4": {"data": 4},
    "data=2, expert=2": {"data": 2, "expert": 2},
    "expert=2, model=2": {"expert": 2, "model": 2},
}


def main(folder, rows, layouts):
    found = {}
    for row in rows:
        for name in layouts or LAYOUTS:
            with expert_parallel(**LAYOUTS[name]).scope():
                found[f"{row}:{name}"] = trained(row, make_model)
    np.savez(folder / "0.npz", **found)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:]))
