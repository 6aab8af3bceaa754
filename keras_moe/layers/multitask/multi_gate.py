"""One bank of experts, a mixture of them for each task.

T tokens, D hidden_dim, F intermediate_dim, E experts, H output_dim, N tasks.
"""

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.multitask.task_mixture import TaskMixture
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MultiGateMoE(TaskMixture):
    """Mixes the same experts in another way for each task (Ma et al. 2018,
    "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", eq. 6-7).

    `f_k(x) = sum_e softmax(W_k x)_e f_e(x)`. Every expert runs on every token,
    once for all tasks: the cost follows E. What the paper calls towers are
    layers of yours on each output. With `num_tasks=1` it is the one-gate
    mixture of the paper's eq. 5.

    Args:
        num_experts: E. 8 is the paper's.
        intermediate_dim: F, the inner width of each expert.
        num_tasks: N.
        **kwargs: `output_dim` (H, None for D), `activation`, `gated`,
            `use_bias`, `dropout`, `kernel_initializer`, `bias_initializer`,
            `kernel_regularizer`, `bias_regularizer`, `kernel_constraint`,
            `bias_constraint`, `seed`, of the experts, see `Expert`; and those
            of `keras.layers.Layer`.

    Weights: `router_kernel_k` `(D, E)`, float32, one a task, beside those of
    `Expert`.

    Call arguments:
        inputs: float `(..., D)` of rank 2 or more.
        mask: bool `(...)`, False for padding, which comes out as zero.
        training: bool.

    Returns:
        A list of N tensors `(..., H)`, in the compute dtype.

    Raises:
        ValueError: for an argument out of its range, inputs of rank below 2,
            of unknown width or of integers, or a mask that does not fit.

    Example:

    ```python
    layer = keras_moe.MultiGateMoE(4, intermediate_dim=32, num_tasks=2)
    click, purchase = layer(keras.random.normal((8, 16)))
    ```
    """

    arguments = ("num_experts", "num_tasks", *TaskMixture.arguments)

    def __init__(
        self, num_experts: int, intermediate_dim: int, num_tasks: int, **kwargs
    ):
        super().__init__(intermediate_dim, **kwargs)
        self.num_experts = checks.check_positive_int("num_experts", num_experts)
        self.num_tasks = checks.check_positive_int("num_tasks", num_tasks)
        self.num_outputs = self.num_tasks
        self.experts = self.bank("experts", num_experts)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`."""
        self.hidden_dim = checks.check_input_shape(input_shape)
        self.build_banks()
        self.add_router_kernels(
            [(self.hidden_dim, self.num_experts)] * self.num_tasks
        )

    def call(
        self, inputs: Tensor, mask: Tensor | None = None, training=None
    ) -> list[Tensor]:
        """Runs all experts, then mixes them for each task."""
        tokens, token_mask = flatten_tokens(inputs, mask, self.hidden_dim)
        outputs = self.experts.run_all(tokens[None], training=training)
        outputs = ops.transpose(outputs, (1, 0, 2))
        mixed = [
            routing.mix_experts(outputs, self.weights_of(tokens, k))
            for k in range(self.num_tasks)
        ]
        return [self.restored(x, token_mask, inputs) for x in mixed]

    def mixture_weights(self, inputs: Tensor) -> list[Tensor]:
        """Returns how much of each expert each task takes.

        Args:
            inputs: float `(..., D)`, T tokens in all.

        Returns:
            A list of N float32 `(T, E)`; each row sums to one.
        """
        inputs = ops.convert_to_tensor(inputs)
        tokens, _ = flatten_tokens(inputs, None, self.hidden_dim)
        return [self.weights_of(tokens, k) for k in range(self.num_tasks)]
