"""Count the batches of one call, and compare them between processes."""

from collections.abc import Callable
from typing import Any

import keras

from keras_moe.distribution import agreement
from keras_moe.distribution.watching import Watch


class BatchCounter(keras.callbacks.Callback):
    """Count the batches of one call of `fit`, `evaluate`, or `predict`.

    Args:
        watch: The `Watch` of this process.
    """

    def __init__(self, watch: Watch):
        super().__init__()
        self.watch = watch
        self.in_step = False
        self.open = False

    def step(self, kind: str, own: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step's function that counts its calls.

        On JAX and TensorFlow, a step may end because there are no more
        batches. On PyTorch, Keras calls it only with a batch.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            self.watch.check()
            place = self.watch.progress
            place.begun += self.open
            self.in_step = True
            try:
                outputs = own(*args, **kwargs)
            finally:
                self.in_step = False
            place.ended += self.open
            return outputs

        return run

    def enter(self, name: str, planned: int | None = None) -> None:
        """Start a section together with the other processes."""
        self.finish()
        place = self.watch.progress
        place.name, place.planned = name, planned
        place.begun = place.ended = 0
        place.finished = False
        place.section += 1
        self.open = True
        self.watch.meet()

    def finish(self) -> None:
        """End the section if one is open, and compare its batches."""
        if not self.open:
            return
        self.open = False
        self.watch.progress.finished = True
        self.watch.meet()

    def announce(self) -> None:
        """Wait until every process reaches another epoch."""
        if not self.open:
            self._meet_at("a further epoch")

    def close(self, name: str) -> None:
        """Wait until every process reaches the end of the call."""
        self._meet_at(f"the end of `{name}`")

    def _meet_at(self, name: str) -> None:
        """Enter a section without batches."""
        self.enter(name)
        self.open = False
        self.watch.progress.finished = True

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Start an epoch."""
        planned = self.params.get("steps")
        self.enter(f"epoch {epoch + 1} of `fit`", planned)

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """End the epoch, or the evaluation at its end."""
        self.finish()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start an evaluation if all processes take part in its steps."""
        self.finish()
        if agreement.is_collective(self.model, "evaluate"):
            self.enter("`evaluate`")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the evaluation."""
        self.finish()

    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Start a prediction."""
        self.enter("`predict`", self.params.get("steps"))

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """End the prediction."""
        self.finish()
