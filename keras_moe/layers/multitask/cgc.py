"""Shared experts and a task's own, mixed for each task.

T tokens, D hidden_dim, F intermediate_dim, H output_dim, N tasks, E the
experts that an output mixes: m a task, s shared.
"""

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.multitask.task_mixture import (
    TaskMixture,
    first,
    one_mask,
)
from keras_moe.layers.tokens import flatten_tokens
from keras_moe.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class CGC(TaskMixture):
    """Customized gate control: each task mixes its own experts and the shared
    ones, and sees nobody else's (Tang et al. 2020, "Progressive Layered
    Extraction (PLE)", section 4.1).

    Args:
        num_tasks: N.
        num_shared_experts: s.
        num_task_experts: m, experts of each task.
        intermediate_dim: F, the inner width of each expert.
        return_shared: whether there is one more output, the last, which mixes
            the experts of all tasks and the shared ones (section 4.2): what
            the shared experts of a next layer read.
        **kwargs: `output_dim` (H, None for D), `activation`, `gated`,
            `use_bias`, `dropout`, `kernel_initializer`, `bias_initializer`,
            `kernel_regularizer`, `bias_regularizer`, `kernel_constraint`,
            `bias_constraint`, `seed`, of the experts, see `Expert`; and those
            of `keras.layers.Layer`.

    Weights: `router_kernel_k` `(D, m + s)`, the task's experts first; with
    `return_shared` one more, `(D, N * m + s)`; float32; beside those of the
    `Expert` banks `task_experts_k` and `shared_experts`.

    Call arguments:
        inputs: float `(..., D)` of rank 2 or more; or a list of N + 1 such
            tensors, an input for each task and the last for the shared
            experts, as a layer with `return_shared` returns them.
        mask: bool `(...)`, False for padding, which comes out as zero.
        training: bool.

    Returns:
        A list of N tensors `(..., H)`, N + 1 with `return_shared`, in the
        compute dtype.

    Raises:
        ValueError: for an argument out of its range, another number of
            inputs, inputs of rank below 2, of unknown width or of integers,
            or a mask that does not fit.

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
        **kwargs,
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

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(..., D)`, or N + 1 of them."""
        self.hidden_dim = checks.check_input_shape(first(input_shape))
        self.build_banks()
        m, s = self.num_task_experts, self.num_shared_experts
        widths = [m + s] * self.num_tasks
        if self.return_shared:
            widths.append(self.num_tasks * m + s)
        self.add_router_kernels([(self.hidden_dim, w) for w in widths])

    def call(self, inputs, mask=None, training=None) -> list[Tensor]:
        """Runs all experts, then mixes them for each output."""
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

    def mixture_weights(self, inputs) -> list[Tensor]:
        """Returns how much of each expert each output takes.

        Args:
            inputs: as in a call, T tokens in all.

        Returns:
            A list of float32 `(T, m + s)`, the task's experts first; with
            `return_shared` the last is `(T, N * m + s)`. Rows sum to one.
        """
        tokens, _ = self._tokens(inputs, None)
        return [self.weights_of(tokens[k], k) for k in range(self.num_outputs)]

    def _tokens(self, inputs, mask):
        """N + 1 inputs as `(T, D)` each, and the mask they share, `(T,)`."""
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
    """Mixes banks `(T, E_i, H)` by weights `(T, E)`, one bank after another.

    Returns:
        `(T, H)`.
    """
    total, start = 0.0, 0
    for part in parts:
        end = start + part.shape[1]
        total = total + routing.mix_experts(part, mixture_weights[:, start:end])
        start = end
    return total
