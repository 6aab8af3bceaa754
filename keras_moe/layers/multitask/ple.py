"""Progressive layered extraction: several layers of `CGC`.

D hidden_dim, F intermediate_dim, H output_dim, N tasks, m experts per task, s
shared experts.
"""

from typing import Any

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
    """Stacks layers of `CGC`, progressive layered extraction.

    Each layer except the last also mixes all its experts, for the shared
    experts of the next layer. The task experts of the next layer read the
    mixture of their own task. So shared and task-specific knowledge are
    separated step by step.

    Args:
        num_tasks: Int, N.
        num_shared_experts: Int, s. Shared experts per layer.
        num_task_experts: Int, m. Experts per task and layer.
        intermediate_dim: Int, F. Inner width of each expert.
        num_layers: Int. 1 is `CGC`; 2 (the default) is the paper's.
        **kwargs: Arguments of `Expert`: `output_dim` (H, of every layer;
            `None`, the default, is D), `activation`, `gated`, `use_bias`,
            `dropout`, `kernel_initializer`, `bias_initializer`,
            `kernel_regularizer`, `bias_regularizer`, `kernel_constraint`,
            `bias_constraint`, `seed`; and those of `keras.layers.Layer`.

    Attributes:
        layers: List of the `CGC` layers, from the inputs to the outputs.

    Call arguments:
        inputs: Float tensor of shape `(..., D)` and rank 2 or more.
        mask: Bool tensor of shape `(...)`, False for padding, whose outputs
            are zero.
        training: Bool.

    Returns:
        List of N tensors `(..., H)`, in the compute dtype.

    Raises:
        ValueError: As `CGC`.

    Reference: Tang et al. 2020, "Progressive Layered Extraction (PLE)", section
    4.2.

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
        **kwargs: Any,
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

    def _layer(self, number: int) -> CGC:
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
        """Create the weights for inputs `(..., D)`."""
        shape = first(input_shape)
        for layer in self.layers:
            layer.build(shape)
            shape = self.output_shape_of(shape)

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> list[Tensor]:
        """Run the layers one after another."""
        x: Any = inputs
        for layer in self.layers:
            x = layer(x, mask=one_mask(mask), training=training)
        outputs: list[Tensor] = x
        return outputs
