"""Snapshot ensembles: one training, M members.

Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free".
"""

import math

import keras
import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.ensemble.training import compile_member


@keras.saving.register_keras_serializable(package="keras_moe")
class CyclicCosine(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate falls along a cosine and starts again (eq. 2).

    `lr(t) = initial / 2 * (cos(pi * (t mod n) / n) + 1)`, where t counts the
    steps from 0 and n is `cycle_steps`.

    Args:
        initial_learning_rate: float, at the start of each cycle; the paper
            has 0.1 and 0.2, for SGD.
        cycle_steps: int, steps of a cycle.
    """

    def __init__(self, initial_learning_rate: float, cycle_steps: int):
        self.initial_learning_rate = checks.check_weight(
            "initial_learning_rate", initial_learning_rate
        )
        self.cycle_steps = checks.check_positive_int("cycle_steps", cycle_steps)

    def __call__(self, step):
        """Returns the learning rate of a step, float32."""
        done = ops.cast(ops.mod(step, self.cycle_steps), "float32")
        cosine = ops.cos(math.pi * done / self.cycle_steps)
        return self.initial_learning_rate / 2 * (cosine + 1)

    def get_config(self) -> dict:
        """Returns the arguments that build this schedule again."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "cycle_steps": self.cycle_steps,
        }


class TakeSnapshots(keras.callbacks.Callback):
    """Copies the model's weights into a member at the end of each cycle.

    Args:
        members: M models like the one that is trained, which is the last.
        cycle_epochs: int, epochs of a cycle.
        first_epoch: int, the number of the epoch that training starts with.
    """

    def __init__(self, members, cycle_epochs: int, first_epoch: int = 0):
        super().__init__()
        self.snapshots = list(members)
        self.cycle_epochs = cycle_epochs
        self.first_epoch = first_epoch

    def on_epoch_end(self, epoch, logs=None):
        """Takes a snapshot where a cycle ends."""
        cycle, rest = divmod(epoch + 1 - self.first_epoch, self.cycle_epochs)
        if not rest and self.snapshots[cycle - 1] is not self.model:
            copy_weights(self.model, self.snapshots[cycle - 1])


def clones(model: keras.Model, number: int) -> list[keras.Model]:
    """Returns `number` models with the model's weights, itself the last."""
    copies = [keras.models.clone_model(model) for _ in range(number - 1)]
    for copy in copies:
        copy_weights(model, copy)
    return [*copies, model]


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies weights; a true copy, as JAX may give the source's away."""
    target.set_weights([np.array(value) for value in source.get_weights()])


def fit_snapshots(
    ensemble, x, y, batch_size, epochs: int, **kwargs
) -> keras.callbacks.History:
    """Trains the last member in cycles; see `Ensemble.fit`."""
    members = ensemble.models
    first_epoch = kwargs.get("initial_epoch", 0)
    cycle_epochs, rest = divmod(epochs - first_epoch, len(members))
    if rest or cycle_epochs < 1:
        raise ValueError(
            "`epochs` must be a multiple of `num_snapshots`: each snapshot "
            f"ends a cycle. Received: epochs={epochs}, initial_epoch="
            f"{first_epoch}, num_snapshots={len(members)}. Pass, for "
            f"instance, epochs={first_epoch + 10 * len(members)}."
        )
    steps = cycle_epochs * _steps_of_an_epoch(x, batch_size, kwargs)
    model = members[-1]
    compile_member(ensemble, model)
    _start_cycles(model, steps)
    callbacks = kwargs.pop("callbacks", None) or []
    if isinstance(callbacks, keras.callbacks.Callback):
        callbacks = [callbacks]
    snapshots = TakeSnapshots(members, cycle_epochs, first_epoch)
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[snapshots, *callbacks],
        **kwargs,
    )


def _start_cycles(model, cycle_steps):
    """Compiles the model anew, with a fresh optimizer that cycles."""
    config = model.get_compile_config()
    arguments = config["optimizer"]["config"]
    rate = keras.saving.deserialize_keras_object(arguments["learning_rate"])
    if isinstance(rate, CyclicCosine):  # of an earlier fit
        rate = rate.initial_learning_rate
    if not isinstance(rate, (int, float)):
        raise ValueError(
            "The optimizer's `learning_rate` must be a number: the cycles "
            f"start from it. Received: {rate!r}. Compile with, for instance, "
            "keras.optimizers.Adam(0.001)."
        )
    schedule = CyclicCosine(float(rate), cycle_steps)
    arguments["learning_rate"] = keras.saving.serialize_keras_object(schedule)
    model.compile_from_config(config)


def _steps_of_an_epoch(x, batch_size, kwargs):
    if kwargs.get("steps_per_epoch"):
        return kwargs["steps_per_epoch"]
    first = keras.tree.flatten(x)[0]
    if hasattr(first, "shape"):
        share = 1 - (kwargs.get("validation_split") or 0)
        return math.ceil(
            math.floor(first.shape[0] * share) / (batch_size or 32)
        )
    try:
        return len(x)
    except TypeError:
        raise ValueError(
            "`x` must say how many batches it has: the cycles' length is in "
            f"steps. Received: x of type {type(x).__name__} without a length. "
            "Pass `steps_per_epoch`."
        ) from None
