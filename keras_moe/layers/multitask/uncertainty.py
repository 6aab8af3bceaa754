"""Learned weights of task losses.

N tasks.
"""

from collections.abc import Sequence
from typing import Any

import keras

from keras_moe import checks, losses
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class UncertaintyWeighting(NamedArguments, KeptInFloats, MoELayer):
    """Sums task losses, each weighted by a learned variance.

    Call the layer when the loss is computed: in `compute_loss`, as
    `UncertaintyWeightedModel` does, or in your own training loop.

    Args:
        num_tasks: Int, N.
        kinds: `"regression"` (the default; mean squared error, halved) or
            `"classification"` (cross-entropy), for all tasks, or a list of N
            kinds.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `log_variances` `(N,)`, float32, zeros at first.

    Call arguments:
        task_losses: List of N scalars, or a tensor of shape `(N,)`.

    Returns:
        Float32 scalar; see `keras_moe.losses.uncertainty_weighted_loss`.

    Raises:
        ValueError: If an argument is out of its range, or if the number of
            kinds or losses is not N.

    Reference: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using
    Uncertainty to Weigh Losses for Scene Geometry and Semantics", eq. 7 and 10.

    Example:

    ```python
    weighting = keras_moe.UncertaintyWeighting(
        2, kinds=["regression", "classification"]
    )
    loss = weighting([ops.convert_to_tensor(0.5), ops.convert_to_tensor(1.2)])
    ```
    """

    fixed_arguments = ("autocast",)

    def __init__(
        self,
        num_tasks: int,
        kinds: str | Sequence[str] = "regression",
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_tasks = checks.check_positive_int("num_tasks", num_tasks)
        if isinstance(kinds, str):
            kinds = [kinds] * self.num_tasks
        kinds = checks.check_list("kinds", kinds, "kinds, one per task")
        self._check_number("kinds", len(kinds))
        self.kinds = [
            checks.check_choice("kinds", kind, losses.TASK_KINDS)
            for kind in kinds
        ]

    def build(self, input_shape: Any = None) -> None:
        """Create the weights; the shape of the losses does not matter."""
        self.log_variances = self.add_weight(
            name="log_variances",
            shape=(self.num_tasks,),
            initializer="zeros",
            dtype="float32",
            autocast=False,
        )

    def call(self, task_losses: list[Tensor] | Tensor) -> Tensor:
        """Return the weighted sum of the losses; see the class."""
        if isinstance(task_losses, (list, tuple)):
            self._check_number("task_losses", len(task_losses))
        else:
            self._check_number("task_losses", task_losses.shape[0])
        return losses.uncertainty_weighted_loss(
            task_losses, self.log_variances, self.kinds
        )

    def _check_number(self, name: str, number: int) -> None:
        if number != self.num_tasks:
            raise ValueError(
                f"`{name}` must be as many as `num_tasks`. Received: {number}, "
                f"num_tasks={self.num_tasks}. Pass one per task."
            )

    def compute_output_shape(self, input_shape: Any) -> tuple[()]:
        """Return the shape of the sum, a scalar."""
        return ()

    def compute_output_spec(self, task_losses: Any) -> keras.KerasTensor:
        """Return the symbolic sum of symbolic losses."""
        return keras.KerasTensor((), "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        return {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "kinds": list(self.kinds),
        }
