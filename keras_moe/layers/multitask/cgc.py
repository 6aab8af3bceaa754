"""Customized gate control: shared experts and experts of each task.

T tokens, D hidden_dim, F intermediate_dim, H output_dim, N tasks, m experts
per task, s shared experts, E experts that an output mixes.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.multitask.task_mixture import (
    TaskMixture,
    first,
    one_mask,
)
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class CGC(TaskMixture):
    """Mixes, for each task, the shared experts and the experts of the task.

    Args:
        num_tasks: Int, N.
        num_shared_experts: Int, s.
        num_task_experts: Int, m. Experts per task.
        intermediate_dim: Int, F. Inner width of each expert.
        return_shared: Bool. Whether there is one more output, the last, that
            mixes the experts of all tasks and the shared experts (section
            4.2), for the shared experts of the next layer. False by default.
        **kwargs: Arguments of `Expert`: `output_dim` (H; `None`, the default,
            is D), `activation`, `gated`, `use_bias`, `dropout`,
            `kernel_initializer`, `bias_initializer`, `kernel_regularizer`,
            `bias_regularizer`, `kernel_constraint`, `bias_constraint`, `seed`;
            and those of `keras.layers.Layer`.

    Weights: `router_kernel_k` `(D, m + s)`, the experts of the task first;
    with `return_shared` one more, `(D, N * m + s)`; all float32, in addition to
    those of the `Expert` banks `task_experts_k` and `shared_experts`.

    Call arguments:
        inputs: Float tensor of shape `(..., D)` and rank 2 or more; or a list
            of N + 1 such tensors, one per task and the last for the shared
            experts, as a layer with `return_shared` returns them.
        mask: Bool tensor of shape `(...)`, False for padding, whose outputs
            are zero.
        training: Bool.

    Returns:
        List of N tensors `(..., H)`, N + 1 with `return_shared`, in the compute
        dtype.

    Raises:
        ValueError: If an argument is out of its range, if the number of inputs
            is neither 1 nor N + 1, if the inputs have integers, a rank below
            2, or an unknown width, or if the mask does not fit.

    Reference: Tang et al. 2020, "Progressive Layered Extraction (PLE)", section
    4.1.

    Example:

    ```python
    layer = keras_moe.CGC(
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
        "return_shared",
        *TaskMixture.arguments,
    )

    def __init__(
        self,
        num_tasks: int,
        num_shared_experts: int,
        num_task_experts: int,
        intermediate_dim: int,
        return_shared: bool = False,
        **kwargs: Any,
    ):
        super().__init__(intermediate_dim, **kwargs)
        self.num_tasks = checks.check_positive_int("num_tasks", num_tasks)
        self.num_shared_experts = checks.check_positive_int(
            "num_shared_experts", num_shared_experts
        )
        self.num_task_experts = checks.check_positive_int(
            "num_task_experts", num_task_experts
        )
        self.return_shared = checks.check_bool("return_shared", return_shared)
        self.num_outputs = self.num_tasks + self.return_shared
        self.task_experts = [
            self.bank(f"task_experts_{k}", num_task_experts)
            for k in range(num_tasks)
        ]
        self.shared_experts = self.bank("shared_experts", num_shared_experts)

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs `(..., D)`, or N + 1 of them."""
        self.hidden_dim = checks.check_input_shape(first(input_shape))
        self.build_banks()
        m, s = self.num_task_experts, self.num_shared_experts
        widths = [m + s] * self.num_tasks
        if self.return_shared:
            widths.append(self.num_tasks * m + s)
        self.add_router_kernels([(self.hidden_dim, w) for w in widths])

    def call(
        self, inputs: Any, mask: Any = None, training: bool | None = None
    ) -> list[Tensor]:
        """Run all experts, then mix them for each output."""
        tokens, token_mask = self._tokens(inputs, mask)
        banks = (*self.task_experts, self.shared_experts)
        outputs = []
        for bank, x in zip(banks, tokens, strict=True):
            y = bank.run_all(x[None], training=training)
            outputs.append(ops.transpose(y, (1, 0, 2)))
        *own, shared = outputs
        parts = [[mine, shared] for mine in own]
        if self.return_shared:
            parts.append(outputs)
        mixed = [
            mix_parts(part, self.weights_of(tokens[k], k))
            for k, part in enumerate(parts)
        ]
        like = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
        return [self.restored(x, token_mask, like) for x in mixed]

    def mixture_weights(self, inputs: Any) -> list[Tensor]:
        """Return the weights of the experts in each output.

        Args:
            inputs: Inputs as in a call, T tokens in all.

        Returns:
            List of float32 tensors `(T, m + s)`, the experts of the task
            first; with `return_shared` the last is `(T, N * m + s)`. Rows sum
            to one.
        """
        tokens, _ = self._tokens(inputs, None)
        return [self.weights_of(tokens[k], k) for k in range(self.num_outputs)]

    def _tokens(
        self, inputs: Any, mask: Any
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return N + 1 inputs as `(T, D)` each, and their mask `(T,)`."""
        if not isinstance(inputs, (list, tuple)):
            inputs = [inputs] * (self.num_tasks + 1)
        if len(inputs) != self.num_tasks + 1:
            raise ValueError(
                "`inputs` must be one tensor, or a list of num_tasks + 1, the "
                f"last for the shared experts. Received: {len(inputs)} tensors,"
                f" num_tasks={self.num_tasks}. Stack layers with "
                "return_shared=True, or use PLE."
            )
        flat = [
            flatten_tokens(x, one_mask(mask), self.hidden_dim) for x in inputs
        ]
        return [tokens for tokens, _ in flat], flat[0][1]


def mix_parts(parts: list[Tensor], mixture_weights: Tensor) -> Tensor:
    """Return the weighted sum of the experts of several banks, `(T, H)`.

    Args:
        parts: List of tensors `(T, E_i, H)`, the outputs of each bank.
        mixture_weights: Tensor of shape `(T, E)`, bank by bank.
    """
    total: Tensor = 0.0
    start = 0
    for part in parts:
        end = start + part.shape[1]
        total = total + routing.mix_experts(part, mixture_weights[:, start:end])
        start = end
    return total
