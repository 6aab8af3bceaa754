"""Save a training regularly, and resume it after a crash."""

import os
from typing import Any

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
    """Save the training regularly, and make `fit` resume from the last save.

    Start the same script again after any of its processes was killed, at any
    time, even during a save: `fit` continues, and its losses are those of a run
    that was never killed. The `History` that it returns includes the epochs
    before. Put the callback last in the list, so that it saves what other
    callbacks change at the end of an epoch.

    A save contains the weights, statistics, states of seeds, and the
    optimizer's variables as whole arrays. They do not depend on the layout, so
    that a save loads with another number of devices or processes. For each
    process, it contains the epoch and batch, the history, and the states of
    Python's, NumPy's, and PyTorch's generators, so that data are shuffled as in
    a run that was never killed. `fit` resumes exactly on arrays, shuffled or
    not, and on a `PyDataset` that draws its order from NumPy's global generator
    in `on_epoch_begin`. A `tf.data.Dataset` that shuffles differently in each
    epoch, a generator, and data with `steps_per_epoch` below their length
    restart from their beginning. The counts of other callbacks, such as the
    patience of `EarlyStopping`, and the random numbers of `keras.random`
    without a `SeedGenerator` start again, too.

    With another number of processes or devices, pass the same global batches.
    Metrics within an epoch are combined by the `aggregation` of their
    variables: totals and counts are added, so that the logs of the epoch are
    those of all its batches. Process `i` uses the generators of the saved
    process `i % N`, if N processes were saved. Therefore, without
    `shuffle=False`, the remaining data have another order than in a run that
    was never killed.

    With several processes, pass the callback in each of them. Process 0 writes
    the saves and decides which one to resume from; the others read it.
    Therefore `directory` must be on a file system that all processes can
    access, and that renames a folder atomically (POSIX, NFS; not an object
    store).

    A save that is damaged or malformed in any part is skipped with a warning,
    and removed after an older save is loaded. Checksums detect damage, not
    tampering. Saves of a version without a checksum of the manifest load with a
    warning. The layers' configurations must be those of the save, as far as
    Keras can save them. Names, initializers, and `remat` may differ, and the
    code of lambdas is not compared.

    Args:
        directory: Str or path. Folder for the saves of this training only.
        save_freq: `"epoch"` (the default) saves at the end of each epoch. An
            int of 1 or more saves after that many batches. If `fit` resumes
            within an epoch, it reads the data up to the batch of the save again
            without computing.
        keep: Int, 2 or more, number of saves to keep. The disk needs room for
            one more. Default: 2.
        delete_checkpoint: Bool, whether to delete the saves at the end of the
            training. If `False` (the default), another `fit` loads the result
            and returns at once, or continues if `epochs` is larger. A launcher
            that restarts all processes after a late crash of one needs this.

    Raises:
        ValueError: If an argument is not one of the values above. At the start
            of training, if the model is not built, if `directory` contains the
            save of another model, or if all saves are damaged. Within a resumed
            epoch, if the metrics differ from those of the save, or if the epoch
            has fewer batches than were trained.
        OSError: If a save fails, in every process; earlier saves are unchanged.
            At the start of training, if a file cannot be read or removed.

    Example:

    ```python
    backup = keras_moe.distribution.BackupAndResume("backup", save_freq=100)
    model.fit(x, y, epochs=10, callbacks=[backup])
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
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
        # If it is True, Keras's CallbackList does not wait for a step's logs.
        self.async_safe = save_freq == "epoch"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Load the newest undamaged save if there is one."""
        _check_built(self.model)
        self.processes = processes_of(self.model)
        if not self.model.optimizer.built:
            self.processes.build_optimizer(self.model)
        self._records: list[list[Any]] = []
        self._own: state.Own | None = None
        self._replay: Replay | None = None
        self._unsaved, self._stopped = 0, False
        self._given_epoch = _keras.initial_epoch_of(self.model)
        generation, manifest = choosing.choose(self.directory, self.processes)
        # Now, because other callbacks may change configurations later.
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

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Keep the generators' states, which determine the order of the data.

        If the save is within the epoch, its batches are replayed.
        """
        own, self._own = self._own, None
        self._epoch, self._seen = epoch, 0
        if own is not None:
            records.show(self.model.history, self._records)
            _keras.set_initial_epoch(self.model, self._given_epoch)
            self._seen = self._manifest["batch"]
            if self._seen:
                self._replay_batches(own)
        self._epoch_random = self.processes.random()

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Save after `save_freq` batches, but not during a replay."""
        if _keras.unsynchronized_model_of(self).stop_training:
            self._stopped = True
        if isinstance(self.save_freq, str) or batch < self._seen:
            return
        self._unsaved += batch + 1 - self._seen
        self._seen = batch + 1
        if self._unsaved >= self.save_freq:
            self._save(self._epoch, batch + 1, logs)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Save, unless the epoch was stopped before its end."""
        if self._stopped:
            return
        if self._replay is not None:
            self._replay.check_finished()
        self._records.append([epoch, records.plain(logs)])
        target = self.params["epochs"]
        over = epoch + 1 >= target or self.model.stop_training
        if over or self.save_freq == "epoch":
            self._save(epoch + 1, 0, {}, target if over else None)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Delete the saves if `delete_checkpoint` is `True`."""
        _keras.set_initial_epoch(self.model, self._given_epoch)
        if self._own is not None:  # no epoch was left to train
            records.show(self.model.history, self._records)
        if self.delete_checkpoint and not self._stopped:
            self.processes.agree(None)  # wait until all have finished
            if self.processes.index == 0:
                for generation in generations.generations(self.directory)[::-1]:
                    generations.remove(generation)

    def _replay_batches(self, own: state.Own) -> None:
        """Skip the batches of the epoch that were trained before the save."""
        self.processes.set_random(own.epoch_random)
        loading.warn_of_other_batches(
            self.directory, self._manifest, self.params.get("steps")
        )
        self._replay = Replay(
            self.model, self.processes, self._seen, own, self._metrics
        )

    def _save(
        self,
        epoch: int,
        batch: int,
        logs: dict[str, Any] | None,
        finished: int | None = None,
    ) -> None:
        """Save in process 0, with the help of all processes.

        If it fails, an error is raised in every process.
        """
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

    def _collect(self, logs: dict[str, Any] | None, batch: int) -> state.Own:
        metrics = self.model.metrics_variables if batch else []
        return state.Own(
            self._records,
            records.plain(logs),
            self._epoch_random,
            self.processes.random(),
            [self.processes.read_own(variable) for variable in metrics],
        )


def _check_keep(keep: Any) -> int:
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 2:
        return keep
    raise ValueError(
        "`keep` must be an integer of 2 or more, because the last save may be "
        f"damaged while it is written. Received: keep={keep!r}. Pass keep=2."
    )


def _check_built(model: keras.Model) -> None:
    if model.built:
        return
    raise ValueError(
        "The model must be built before `fit` if BackupAndResume is used. "
        f"Received: model {model.name!r}, not built. Call it on a batch, or "
        "start it with a keras.Input."
    )
