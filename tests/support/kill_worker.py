"""Train on two processes, of which one is killed.

Run `python kill_worker.py FOLDER`. The first attempt ends with kill -9 of
process 1 within an epoch, the second with kill -9 of the chief within a save.
The third attempt trains to the end, and then trains another model from the
beginning without a kill.
"""

import os
import pathlib
import signal
import sys

if os.environ["KERAS_BACKEND"] != "tensorflow":
    import light_keras  # noqa: F401

import keras  # noqa: E402
import numpy as np  # noqa: E402
from backend import BACKEND  # noqa: E402
from distributed_model import BATCH, make_data, make_model  # noqa: E402

from keras_moe.distribution import (  # noqa: E402
    data_parallel,
    expert_parallel,
    shard_experts,
)
from keras_moe.distribution.backup import BackupAndResume, state  # noqa: E402
from keras_moe.distribution.backup.processes import processes_of  # noqa: E402
from keras_moe.distribution.environment import (  # noqa: E402
    initialize,
    process_index,
)

EPOCHS, SAVE_FREQ = 3, 2  # five batches per epoch
KILLED = (1, 2)  # in this epoch, after this batch, which follows a save
ATTEMPT = int(os.environ["KERAS_MOE_ATTEMPT"])


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class KillWithinEpoch(keras.callbacks.Callback):
    """Kills process 1, so that the other process cannot continue."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == KILLED and process_index() == 1:
            kill()


def kill_within_save(at):
    """Kill the chief in its save number `at`, after eight arrays."""
    write = state.write_arrays
    saves = []

    def dying(path, arrays):
        saves.append(path)
        if len(saves) < at:
            return write(path, arrays)
        write(path, (next(arrays) for _ in range(8)))
        kill()

    state.write_arrays = dying


def make_jax():
    """Return a model with experts and batch on both processes' devices."""
    distribution = expert_parallel()
    distribution.auto_shard_dataset = False
    keras.distribution.set_distribution(distribution)
    return make_model()


def make_tensorflow():
    """Return a replicated model; reuse one strategy in this process."""
    import tensorflow as tf

    if not STRATEGIES:
        STRATEGIES.append(tf.distribute.MultiWorkerMirroredStrategy())
    with STRATEGIES[0].scope():
        return data_parallel(make_model())


def make_torch():
    """Return a model whose experts are sharded and the rest is replicated."""
    return data_parallel(shard_experts(make_model()))


STRATEGIES = []
MAKE = {"jax": make_jax, "tensorflow": make_tensorflow, "torch": make_torch}


def own_data():
    """Return this process's half of each batch; TensorFlow divides itself."""
    x, y = make_data()
    if BACKEND == "tensorflow":
        return {"x": x, "y": y, "batch_size": BATCH}
    rows = np.arange(len(x)).reshape(-1, 2, BATCH // 2)[:, process_index()]
    rows = rows.ravel()
    return {"x": x[rows], "y": y[rows], "batch_size": BATCH // 2}


def fit(*callbacks):
    """Return the model and the loss of each epoch, including restored ones.

    Each process shuffles its part with its own seed. TensorFlow's workers
    shuffle the whole data with one seed, and each takes its part.
    """
    keras.utils.set_random_seed(0)
    model = MAKE[BACKEND]()
    keras.utils.set_random_seed(
        0 if BACKEND == "tensorflow" else process_index()
    )
    history = model.fit(
        **own_data(), epochs=EPOCHS, verbose=0, callbacks=list(callbacks)
    )
    return model, history.history["loss"]


def main(folder):
    folder = pathlib.Path(folder)
    initialize()
    if ATTEMPT == 1 and process_index() == 0:
        kill_within_save(2)
    backup = BackupAndResume(folder / "backup", SAVE_FREQ)
    _, losses = fit(backup, *([KillWithinEpoch()] if ATTEMPT == 0 else []))
    model, undisturbed = fit()
    weights = dict(state.arrays_of(model, processes_of(model)))
    np.savez(
        folder / f"process{process_index()}.npz",
        resumed=losses,
        undisturbed=undisturbed,
        attempt=ATTEMPT,
        **weights,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
