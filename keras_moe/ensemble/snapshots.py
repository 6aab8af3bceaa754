"""Snapshot ensembles: one training, M members.

Huang et al. 2017, "Snapshot Ensembles: Train 1, Get M for Free".
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.ensemble.training import compile_member
from keras_moe.types import Tensor

if TYPE_CHECKING:  # it imports this module
    from keras_moe.ensemble.model import Ensemble


@keras.saving.register_keras_serializable(package="keras_moe")
class CyclicCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Decrease the learning rate along a cosine in each cycle (eq. 2).

    `lr(t) = initial / 2 * (cos(pi * (t mod n) / n) + 1)` at step t, counted
    from 0, with n = `cycle_steps`.

    Args:
        initial_learning_rate: float of 0 or above. Learning rate at the start
            of each cycle. The paper uses 0.1 and 0.2 for SGD.
        cycle_steps: Positive int. n, the number of steps per cycle.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.

    Example:

    ```python
    schedule = keras_moe.ensemble.CyclicCosine(0.1, cycle_steps=1000)
    optimizer = keras.optimizers.SGD(schedule)
    ```
    """

    def __init__(self, initial_learning_rate: float, cycle_steps: int):
        self.initial_learning_rate = checks.check_weight(
            "initial_learning_rate", initial_learning_rate
        )
        self.cycle_steps = checks.check_positive_int("cycle_steps", cycle_steps)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the learning rate of a step, float32."""
        done = ops.cast(ops.mod(step, self.cycle_steps), "float32")
        cosine = ops.cos(math.pi * done / self.cycle_steps)
        return self.initial_learning_rate / 2 * (cosine + 1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this schedule again."""
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "cycle_steps": self.cycle_steps,
        }


class TakeSnapshots(keras.callbacks.Callback):
    """Copy the model's weights into a member at the end of each cycle.

    Args:
        members: M models of the same architecture. The last is trained.
        cycle_epochs: Positive int. Number of epochs per cycle.
        first_epoch: int. The epoch that training starts with. Defaults to 0.
    """

    def __init__(
        self,
        members: Iterable[keras.Model],
        cycle_epochs: int,
        first_epoch: int = 0,
    ):
        super().__init__()
        self.snapshots = list(members)
        self.cycle_epochs = cycle_epochs
        self.first_epoch = first_epoch

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Take a snapshot if a cycle ends."""
        cycle, rest = divmod(epoch + 1 - self.first_epoch, self.cycle_epochs)
        if not rest and self.snapshots[cycle - 1] is not self.model:
            copy_weights(self.model, self.snapshots[cycle - 1])


def clones(model: keras.Model, number: int) -> list[keras.Model]:
    """Return `number` models with a model's weights, itself the last."""
    copies = [keras.models.clone_model(model) for _ in range(number - 1)]
    for copy in copies:
        copy_weights(model, copy)
    return [*copies, model]


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Copy the arrays of weights, since JAX may donate those of the source."""
    target.set_weights([np.array(value) for value in source.get_weights()])


def fit_snapshots(
    ensemble: "Ensemble",
    x: Any,
    y: Any,
    batch_size: int | None,
    epochs: int,
    **kwargs: Any,
) -> keras.callbacks.History:
    """Train the last member in cycles; see `Ensemble.fit`."""
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


def _start_cycles(model: keras.Model, cycle_steps: int) -> None:
    """Compile the model anew, with a new optimizer of a cyclic schedule."""
    config = model.get_compile_config()
    arguments = config["optimizer"]["config"]
    rate = keras.saving.deserialize_keras_object(arguments["learning_rate"])
    if isinstance(rate, CyclicCosine):  # from an earlier `fit`
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


def _steps_of_an_epoch(
    x: Any, batch_size: int | None, kwargs: dict[str, Any]
) -> int:
    steps: int | None = kwargs.get("steps_per_epoch")
    if steps:
        return steps
    first = keras.tree.flatten(x)[0]
    if hasattr(first, "shape"):
        share: float = 1 - (kwargs.get("validation_split") or 0)
        samples: int = math.floor(first.shape[0] * share)
        return math.ceil(samples / (batch_size or 32))
    try:
        return len(x)
    except TypeError:
        raise ValueError(
            "`x` must have a length, the number of its batches: a cycle is a "
            f"number of steps. Received: x of type {type(x).__name__} without "
            "a length. Pass `steps_per_epoch`."
        ) from None
