"""Layers of shared and task experts, one upon the other.

D hidden_dim, F intermediate_dim, H output_dim, N tasks, m experts a task, s
shared ones.
"""

import keras

from keras_moe import checks
from keras_moe.layers.multitask.cgc import CGC
from keras_moe.layers.multitask.task_mixture import (
    TaskMixture,
    first,
    one_mask,
)
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class PLE(TaskMixture):
    """Progressive layered extraction (Tang et al. 2020, section 4.2).

    `num_layers` layers of `CGC`, the last one as it is. Each layer before it
    also mixes all its experts for the shared experts of the next, whose task
    experts read their own task's mixture: what tasks share and what they do
    not is told apart step by step.

    Args:
        num_tasks: N.
        num_shared_experts: s, in each layer.
        num_task_experts: m, experts of each task in each layer.
        intermediate_dim: F, the inner width of each expert.
        num_layers: 1 is `CGC`; 2 is the paper's.
        **kwargs: `output_dim` (H, of every layer; None for D), `activation`,
            `gated`, `use_bias`, `dropout`, `kernel_initializer`,
            `bias_initializer`, `kernel_regularizer`, `bias_regularizer`,
            `kernel_constraint`, `bias_constraint`, `seed`, of the experts,
            see `Expert`; and those of `keras.layers.Layer`.

    Attributes:
        layers: the `CGC` layers, from the inputs up.

    Call arguments:
        inputs: float `(..., D)` of rank 2 or more.
        mask: bool `(...)`, False for padding, which comes out as zero.
        training: bool.

    Returns:
        A list of N tensors `(..., H)`, in the compute dtype.

    Raises:
        ValueError: as `CGC`.

    Example:

    ```python
    layer = keras_moe.PLE(
        num_tasks=2,
        num_shared_experts=2,
        num_task_experts=3,
        intermediate_dim=32,
    )
    click, purchase = layer(keras.random.normal((8, 16)))
    ```
    """

    arguments = (
        "num_tasks",
        "num_shared_experts",
        "num_task_experts",
        "num_layers",
        *TaskMixture.arguments,
    )

    def __init__(
        self,
        num_tasks: int,
        num_shared_experts: int,
        num_task_experts: int,
        intermediate_dim: int,
        num_layers: int = 2,
        **kwargs,
    ):
        super().__init__(intermediate_dim, **kwargs)
        self.num_tasks = checks.check_positive_int("num_tasks", num_tasks)
        self.num_outputs = self.num_tasks
        self.num_shared_experts = checks.check_positive_int(
            "num_shared_experts", num_shared_experts
        )
        self.num_task_experts = checks.check_positive_int(
            "num_task_experts", num_task_experts
        )
        self.num_layers = checks.check_positive_int("num_layers", num_layers)
        self.layers = [self._layer(j) for j in range(self.num_layers)]

    def _layer(self, number):
        name = f"extraction_{number}"
        return CGC(
            self.num_tasks,
            self.num_shared_experts,
            self.num_task_experts,
            return_shared=number < self.num_layers - 1,
            name=name,
            dtype=self.dtype_policy,
            **self.style_of(name),
        )

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        shape = first(input_shape)
        for layer in self.layers:
            layer.build(shape)
            shape = self.output_shape_of(shape)

    def call(
        self, inputs: Tensor, mask: Tensor | None = None, training=None
    ) -> list[Tensor]:
        """Runs the layers one after another."""
        x = inputs
        for layer in self.layers:
            x = layer(x, mask=one_mask(mask), training=training)
        return x
