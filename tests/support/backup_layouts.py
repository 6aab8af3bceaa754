"""Train an epoch in each of three JAX layouts.

Run `python backup_layouts.py FOLDER`.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)

import light_keras  # noqa: F401

# isort: split
import keras
from distributed_model import BATCH, make_data, make_model

from keras_moe.distribution import expert_parallel
from keras_moe.distribution.backup import BackupAndResume

LAYOUTS = (8, 4, 1)  # devices


def fit(devices, epochs, *callbacks):
    distribution = expert_parallel(devices) if devices > 1 else None
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    x, y = make_data(steps=2)
    history = make_model().fit(
        x, y, BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks)
    )
    return history.history["loss"]


def main(folder):
    folder = pathlib.Path(folder)
    for epochs, devices in enumerate(LAYOUTS, start=1):
        losses = fit(devices, epochs, BackupAndResume(folder / "backup"))
    found = {"resumed": losses, "alone": fit(1, len(LAYOUTS))}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
