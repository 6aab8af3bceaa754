"""The callback that makes a training outlive its processes."""

import pathlib
import warnings

import keras
import numpy as np

from keras_moe.distribution.backup import choosing, generations, state
from keras_moe.distribution.backup.processes import Processes, processes_of
from keras_moe.distribution.backup.replaying import Replay
from keras_moe.layers import checks


class BackupAndResume(keras.callbacks.Callback):
    """Saves the training again and again; `fit` goes on from the last save.

    Start the same script again after any of its processes was killed, at any
    time, in the middle of a save too: `fit` continues, and its losses are those
    of a run that nobody killed. The `History` that it returns holds the epochs
    before as well. Put it last among the callbacks: what they change at an
    epoch's end is then saved.

    A save holds the weights, statistics, states of seeds and the optimizer's
    variables as whole arrays, whatever the layout, so that it loads under
    another number of devices or processes. For each process it holds the epoch
    and batch, the history and the states of Python's, NumPy's and PyTorch's
    generators, so that the data are shuffled on as they would have been. Arrays
    in `fit`, shuffled or not, are exact; so is a `PyDataset` that draws its
    order by NumPy's global generator in `on_epoch_begin`. A `tf.data.Dataset`
    that shuffles anew in each epoch, a generator, and `steps_per_epoch` below
    the data's length start from their beginning instead. What other callbacks
    count, such as `EarlyStopping`'s patience, starts anew, and so does what
    `keras.random` draws without a `SeedGenerator`.

    With several processes every one of them passes the callback. The chief
    (index 0) writes and decides which save to resume from; the others read it,
    so `directory` must lie on a file system that all of them see, and that
    renames a folder at once (POSIX, NFS; not an object store).

    Args:
        directory: folder of the saves, of this training only.
        save_freq: `"epoch"`, or after how many batches to save, 1 or more.
            Within an epoch a resumed `fit` goes through the data again up to
            the batch of the save, without computing.
        keep: how many saves to keep, 2 or more; the disk needs room for one
            more. A save that a failing disk tore is passed over with a warning.
        delete_checkpoint: whether the saves are deleted when the training has
            finished. By default they stay: `fit` on them loads the result and
            returns at once, or trains on where `epochs` is raised. A launcher
            that restarts all processes after one died late needs that.

    Raises:
        ValueError: for an argument out of its range, and at the start of
            training, where the model is not built or `directory` holds another
            model's save, or torn ones only.
        OSError: where a save fails, on every process; earlier saves are intact.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        save_freq: str | int = "epoch",
        keep: int = 2,
        delete_checkpoint: bool = False,
    ):
        super().__init__()
        self.directory = checks.check_path("directory", directory)
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
        self._unsaved, self._stopped = 0, False
        self._given_epoch = self.model._initial_epoch
        generation, manifest = choosing.choose(self.directory, self.processes)
        if generation is not None:
            self._load(generation, manifest)
            self.model._initial_epoch = self._first_epoch(manifest)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the generators' states, from which the data's order
        follows; has the batches of a save within the epoch replayed."""
        own, self._own = self._own, None
        self._epoch, self._seen = epoch, 0
        if own is not None:
            self._show_history()
            self.model._initial_epoch = self._given_epoch
            self._seen = self._batch
            if self._batch:
                self.processes.set_random(own.epoch_random)
                Replay(self.model, self.processes, self._batch, own)
        self._epoch_random = self.processes.random()

    def on_train_batch_end(self, batch, logs=None):
        """Saves, where it is time and the batch is not one of a replay."""
        # Not `self.model`, which on JAX waits for the step and copies.
        if self._model.stop_training:
            self._stopped = True
        if self.save_freq == "epoch" or batch < self._seen:
            return
        self._unsaved += batch + 1 - self._seen
        self._seen = batch + 1
        if self._unsaved >= self.save_freq:
            self._save(self._epoch, batch + 1, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Saves, unless the epoch was stopped within."""
        if self._stopped:
            return
        self._records.append([epoch, _plain(logs)])
        target = self.params["epochs"]
        over = epoch + 1 >= target or self.model.stop_training
        if over or self.save_freq == "epoch":
            self._save(epoch + 1, 0, {}, target if over else None)

    def on_train_end(self, logs=None):
        """Deletes the saves, where asked to."""
        self.model._initial_epoch = self._given_epoch
        if self._own is not None:  # no epoch was left to train
            self._show_history()
        if self.delete_checkpoint and not self._stopped:
            self.processes.agree(None)  # nobody needs them any more
            if self.processes.index == 0:
                for generation in generations.generations(self.directory):
                    generations.remove(generation)

    def _load(self, generation, manifest):
        """Loads a save; fails on all processes where one cannot."""
        model, processes = self.model, self.processes
        mine = state.describe(model, processes)
        error = None
        try:
            state.check_same(self.directory, manifest, mine)
            path = generation / state.ARRAYS
            state.load_arrays(path, state.variables_of(model), processes)
            index = processes.index % manifest["processes"]
            self._own = state.unpack(generation / _own_name(index))
        except (OSError, ValueError) as raised:
            error = raised
        processes.agree(error)
        self._batch = manifest["batch"]
        self._records = self._own.records
        processes.set_random(self._own.random)

    def _first_epoch(self, manifest):
        done, epochs = manifest["epoch"], self.params["epochs"]
        begun = done + (manifest["batch"] > 0)
        if epochs < begun:
            warnings.warn(
                f"`epochs` must be {begun} or more: so many are begun in "
                f"{str(self.directory)!r}. Received: epochs={epochs}. The "
                "model is loaded and not trained.",
                stacklevel=2,
            )
        over = epochs <= (manifest["finished"] or done)
        return epochs if over else done

    def _show_history(self):
        history = self.model.history
        history.epoch = [epoch for epoch, _ in self._records]
        history.history = {}
        for _, logs in self._records:
            for name, value in logs.items():
                history.history.setdefault(name, []).append(value)

    def _save(self, epoch, batch, logs, finished=None):
        """Every process takes part; the chief writes; all fail together."""
        model, processes = self.model, self.processes
        self._unsaved = 0
        own = self._collect(logs, batch)
        packed = processes.gather_bytes(state.pack(own))
        described = {
            **state.describe(model, processes),
            "backend": keras.backend.backend(),
            "processes": processes.count,
            "epoch": epoch,
            "batch": batch,
            "finished": finished,
        }
        arrays = state.arrays_of(model, processes)

        def fill(folder):
            state.write_arrays(folder / state.ARRAYS, arrays)
            for index, data in enumerate(packed):
                (folder / _own_name(index)).write_bytes(data)
            return described

        error = None
        if processes.index == 0:
            try:
                generations.write(self.directory, fill, self.keep)
            except Exception as raised:  # the others wait to hear of it
                error = raised
        for _ in arrays:  # what is gathered, is gathered by all
            pass
        processes.agree(error)

    def _collect(self, logs, batch):
        metrics = self.model.metrics_variables if batch else []
        return state.Own(
            self._records,
            _plain(logs),
            self._epoch_random,
            self.processes.random(),
            [self.processes.read_own(variable) for variable in metrics],
        )


def _plain(logs):
    """Numbers, or lists of them, as JSON has them."""
    return {name: np.asarray(v).tolist() for name, v in (logs or {}).items()}


def _own_name(index):
    return f"process-{index}.npz"


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
