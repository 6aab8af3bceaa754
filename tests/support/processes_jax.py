"""Train on one of two JAX processes over gloo.

Run `python processes_jax.py FOLDER`.
"""

import json
import pathlib
import sys

import light_keras  # noqa: F401

# isort: split
import keras

keras.distribution.initialize()

import distributed_model  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from distributed_model import BATCH, furthest  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

from keras_moe.distribution import expert_parallel  # noqa: E402


def main(folder):
    """Train on both processes; the first one also trains alone."""
    x, y = distributed_model.make_data()
    number = jax.process_index()

    def mine(array):
        halves = array.reshape(-1, 2, BATCH // 2, *array.shape[1:])
        return np.concatenate(halves[:, number])

    distribution = expert_parallel()
    distribution.auto_shard_dataset = False
    with distribution.scope():
        model = distributed_model.make_model()
        losses = distributed_model.train(
            model, mine(x), mine(y), batch_size=BATCH // 2
        )
    kernels = [w.value for w in model.weights if w.path.endswith("_kernel")]
    found = {"losses": losses}
    for w in model.weights:
        if "seed" not in w.path:
            found[w.path] = np.asarray(
                multihost_utils.process_allgather(w.value, tiled=True)
            )
    result = {
        "processes": jax.process_count(),
        "all kernel bytes": sum(k.nbytes for k in kernels),
        "kernel bytes": sum(
            k.addressable_shards[0].data.nbytes for k in kernels
        ),
    }
    if number == 0:
        alone = distributed_model.run_alone()
        result["furthest"] = furthest(found, alone)[0]
    folder = pathlib.Path(folder)
    np.savez(folder / f"{number}.npz", **found)
    (folder / f"{number}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
