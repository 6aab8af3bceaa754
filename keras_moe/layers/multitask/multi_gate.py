"""Multi-gate mixture: one bank of experts, mixed for each task.

T tokens, D hidden_dim, F intermediate_dim, E experts, H output_dim, N tasks.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.multitask.task_mixture import TaskMixture
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MultiGateMoE(TaskMixture):
    """Mixes the same experts with different weights for each task.

    `f_k(x) = sum_e softmax(W_k x)_e f_e(x)`. Every expert runs once on every
    token for all tasks, so the cost follows E. The towers of the paper are your
    own layers on each output. With `num_tasks=1`, it is the one-gate mixture of
    the paper's eq. 5.

    Args:
        num_experts: Int, E. 8 in the paper.
        intermediate_dim: Int, F. Inner width of each expert.
        num_tasks: Int, N.
        **kwargs: Arguments of `Expert`: `output_dim` (H; `None`, the default,
            is D), `activation`, `gated`, `use_bias`, `dropout`,
            `kernel_initializer`, `bias_initializer`, `kernel_regularizer`,
            `bias_regularizer`, `kernel_constraint`, `bias_constraint`, `seed`;
            and those of `keras.layers.Layer`.

    Weights: `router_kernel_k` `(D, E)`, float32, one per task, in addition to
    those of `Expert`.

    Call arguments:
        inputs: Float tensor of shape `(..., D)` and rank 2 or more.
        mask: Bool tensor of shape `(...)`, False for padding, whose outputs
            are zero.
        training: Bool.

    Returns:
        List of N tensors `(..., H)`, in the compute dtype.

    Raises:
        ValueError: If an argument is out of its range, if the inputs have
            integers, a rank below 2, or an unknown width, or if the mask does
            not fit.

    Reference: Ma et al. 2018, "Modeling Task Relationships in Multi-task
    Learning with Multi-gate Mixture-of-Experts", eq. 6-7.

    Example:

    ```python
    layer = keras_moe.MultiGateMoE(4, intermediate_dim=32, num_tasks=2)
    click, purchase = layer(keras.random.normal((8, 16)))
    ```
    """

    arguments = ("num_experts", "num_tasks", *TaskMixture.arguments)

    def __init__(
        self,
        num_experts: int,
        intermediate_dim: int,
        num_tasks: int,
        **kwargs: Any,
    ):
        super().__init__(intermediate_dim, **kwargs)
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.num_tasks = checks.check_positive_int("num_tasks", num_tasks)
        self.num_outputs = self.num_tasks
        self.experts = self.bank("experts", num_experts)

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self.build_banks()
        self.add_router_kernels(
            [(self.hidden_dim, self.num_experts)] * self.num_tasks
        )

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> list[Tensor]:
        """Run all experts, then mix them for each task."""
        tokens, token_mask = flatten_tokens(inputs, mask, self.hidden_dim)
        outputs = self.experts.run_all(tokens[None], training=training)
        outputs = ops.transpose(outputs, (1, 0, 2))
        mixed = [
            routing.mix_experts(outputs, self.weights_of(tokens, k))
            for k in range(self.num_tasks)
        ]
        return [self.restored(x, token_mask, inputs) for x in mixed]

    def mixture_weights(self, inputs: Tensor) -> list[Tensor]:
        """Return the weights of the experts for each task.

        Args:
            inputs: Float tensor of shape `(..., D)`, T tokens in all.

        Returns:
            List of N float32 tensors `(T, E)`, whose rows sum to one.
        """
        inputs = ops.convert_to_tensor(inputs)
        tokens, _ = flatten_tokens(inputs, None, self.hidden_dim)
        return [self.weights_of(tokens, k) for k in range(self.num_tasks)]
