"""The callback that makes a training outlive its processes."""

import pathlib

import keras

from keras_moe import _keras, checks
from keras_moe.distribution.backup import (
    choosing,
    generations,
    identity,
    loading,
    records,
    state,
    writing,
)
from keras_moe.distribution.backup.processes import Processes, processes_of
from keras_moe.distribution.backup.replaying import Replay


class BackupAndResume(keras.callbacks.Callback):
    """Save the training regularly; `fit` resumes from the last save.

    Start the same script again after any of its processes was killed, at any
    time, in the middle of a save too: `fit` continues, and its losses are those
    of a run that was never killed. The `History` that it returns also holds the
    epochs before. Put the callback last: what other callbacks change at the end
    of an epoch is then saved.

    A save holds the weights, statistics, states of seeds, and the optimizer's
    variables as whole arrays, whatever the layout, so that it loads under
    another number of devices or processes. For each process it holds the epoch
    and batch, the history, and the states of Python's, NumPy's, and PyTorch's
    generators, so that the data are shuffled as they would have been. Arrays
    in `fit`, shuffled or not, are exact; so is a `PyDataset` that draws its
    order from NumPy's global generator in `on_epoch_begin`. A
    `tf.data.Dataset` that shuffles anew in each epoch, a generator, and
    `steps_per_epoch` below the data's length start from their beginning
    instead. What other callbacks count, such as `EarlyStopping`'s patience,
    starts anew, and so does what `keras.random` draws without a
    `SeedGenerator`.

    On another number of processes or devices, pass the same global batches.
    Metrics within an epoch are combined by their variables' `aggregation`:
    totals and counts are added, so that the epoch's logs are those of all its
    batches. Process `i` takes the generators of the saved process `i % N`, N
    being the saved number; so without `shuffle=False` the remaining data come
    in another order than in a run that was never killed.

    With several processes, each of them passes the callback. The chief
    (index 0) writes and decides which save to resume from; the others read it.
    `directory` must therefore lie on a file system that all of them see, and
    that renames a folder atomically (POSIX, NFS; not an object store).

    A save that is damaged or malformed in any part is passed over with a
    warning, and removed once an older one is loaded. Checksums detect damage,
    not malice. Saves of a version without a checksum of the manifest load with
    a warning. The layers' configurations must be those of the save, as far as
    Keras can save them; names, initializers, and `remat` may differ, and the
    code of lambdas is not compared.

    Args:
        directory: str or path. Folder of the saves, of this training only.
        save_freq: `"epoch"`, or the number of batches, 1 or more, after which
            to save. Within an epoch, a resumed `fit` reads the data again up
            to the batch of the save, without computing. Defaults to
            `"epoch"`.
        keep: int, 2 or more. How many saves to keep; the disk needs room for
            one more. Defaults to 2.
        delete_checkpoint: bool. Whether to delete the saves once the training
            has finished. By default they stay: `fit` on them loads the result
            and returns at once, or trains further if `epochs` is raised. A
            launcher that restarts all processes after one died late needs
            that.

    Raises:
        ValueError: if an argument is out of its range; at the start of
            training, if the model is not built, `directory` holds another
            model's save, or all saves are torn; within a resumed epoch, if the
            metrics are not those of the save.
        OSError: if a save fails, on every process; earlier saves are intact.
            At the start, if a file cannot be read or removed.

    Example:

    ```python
    backup = keras_moe.distribution.BackupAndResume("backup", save_freq=100)
    model.fit(x, y, epochs=10, callbacks=[backup])
    ```
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        save_freq: str | int = "epoch",
        keep: int = 2,
        delete_checkpoint: bool = False,
    ):
        super().__init__()
        # `fit` may change the working directory between two saves.
        self.directory = checks.check_path("directory", directory).absolute()
        if not isinstance(save_freq, str) or save_freq != "epoch":
            save_freq = checks.check_positive_int("save_freq", save_freq)
        self.save_freq = save_freq
        self.keep = _check_keep(keep)
        self.delete_checkpoint = checks.check_bool(
            "delete_checkpoint", delete_checkpoint
        )
        self.processes: Processes = Processes()
        # Then nothing waits for a step's logs: see Keras's CallbackList.
        self.async_safe = save_freq == "epoch"

    def on_train_begin(self, logs=None):
        """Loads the newest whole save, where there is one."""
        _check_built(self.model)
        self.processes = processes_of(self.model)
        if not self.model.optimizer.built:
            self.processes.build_optimizer(self.model)
        self._records: list = []
        self._own: state.Own | None = None
        self._replay: Replay | None = None
        self._unsaved, self._stopped = 0, False
        self._given_epoch = _keras.initial_epoch_of(self.model)
        generation, manifest = choosing.choose(self.directory, self.processes)
        # Now, as other callbacks may change what a configuration holds.
        self._described = identity.describe(self.model, self.processes)
        if generation is not None:
            self._own, self._metrics = loading.load_training(
                self.model,
                generation,
                manifest,
                self._described,
                self.processes,
            )
            self._records = self._own.records
            self.processes.set_random(self._own.random)
            first = loading.first_epoch(
                self.directory, manifest, self.params["epochs"]
            )
            _keras.set_initial_epoch(self.model, first)
        self._manifest = manifest
        choosing.tidy(self.directory, generation, self.processes)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the generators' states, from which the data's order
        follows; has the batches of a save within the epoch replayed."""
        own, self._own = self._own, None
        self._epoch, self._seen = epoch, 0
        if own is not None:
            records.show(self.model.history, self._records)
            _keras.set_initial_epoch(self.model, self._given_epoch)
            self._seen = self._manifest["batch"]
            if self._seen:
                self._replay_batches(own)
        self._epoch_random = self.processes.random()

    def on_train_batch_end(self, batch, logs=None):
        """Saves, where it is time and the batch is not one of a replay."""
        if _keras.unsynchronized_model_of(self).stop_training:
            self._stopped = True
        if isinstance(self.save_freq, str) or batch < self._seen:
            return
        self._unsaved += batch + 1 - self._seen
        self._seen = batch + 1
        if self._unsaved >= self.save_freq:
            self._save(self._epoch, batch + 1, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Saves, unless the epoch was stopped within."""
        if self._stopped:
            return
        if self._replay is not None:
            self._replay.check_finished()
        self._records.append([epoch, records.plain(logs)])
        target = self.params["epochs"]
        over = epoch + 1 >= target or self.model.stop_training
        if over or self.save_freq == "epoch":
            self._save(epoch + 1, 0, {}, target if over else None)

    def on_train_end(self, logs=None):
        """Deletes the saves, where asked to."""
        _keras.set_initial_epoch(self.model, self._given_epoch)
        if self._own is not None:  # no epoch was left to train
            records.show(self.model.history, self._records)
        if self.delete_checkpoint and not self._stopped:
            self.processes.agree(None)  # nobody needs them any more
            if self.processes.index == 0:
                for generation in generations.generations(self.directory)[::-1]:
                    generations.remove(generation)

    def _replay_batches(self, own):
        """Have the batches skipped that were trained before the save."""
        self.processes.set_random(own.epoch_random)
        loading.warn_of_other_batches(
            self.directory, self._manifest, self.params.get("steps")
        )
        self._replay = Replay(
            self.model, self.processes, self._seen, own, self._metrics
        )

    def _save(self, epoch, batch, logs, finished=None):
        """Every process takes part; the chief writes; all fail together."""
        model, processes = self.model, self.processes
        self._unsaved = 0
        described = {
            **self._described,
            "backend": keras.backend.backend(),
            "processes": processes.count,
            "epoch": epoch,
            "batch": batch,
            "steps": self.params.get("steps"),
            "finished": finished,
        }
        writing.write(
            self.directory,
            self.keep,
            model,
            self._collect(logs, batch),
            described,
            processes,
        )

    def _collect(self, logs, batch):
        metrics = self.model.metrics_variables if batch else []
        return state.Own(
            self._records,
            records.plain(logs),
            self._epoch_random,
            self.processes.random(),
            [self.processes.read_own(variable) for variable in metrics],
        )


def _check_keep(keep):
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 2:
        return keep
    raise ValueError(
        "`keep` must be an integer of 2 or more: one save that is whole while "
        f"the next is written or torn. Received: keep={keep!r}. Pass keep=2."
    )


def _check_built(model):
    if model.built:
        return
    raise ValueError(
        "The model must be built before `fit` where its training is backed up. "
        f"Received: model {model.name!r}, not built. Call it on a batch, or "
        "begin it with a keras.Input."
    )
