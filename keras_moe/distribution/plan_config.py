"""Describe a training step for the planner.

T tokens of a step, D hidden_dim, F intermediate_dim, E experts, K top_k.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import keras

from keras_moe import checks
from keras_moe.layers import Expert
from keras_moe.layers.argument_names import check_names
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import find_blocks


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """Describe a training step of a model with MoE blocks of one size.

    Args:
        tokens: Int, T, tokens of the whole batch.
        hidden_dim: Int, D.
        intermediate_dim: Int, F.
        num_experts: Int, E.
        top_k: Int, K. Default: 2.
        num_blocks: Int, number of MoE blocks of these sizes. Default: 1.
        gated: Whether the experts are gated. Default: `False`.
        use_bias: Whether the experts have biases. Default: `True`.
        capacity_factor: Float, capacity factor of the blocks. `None` (the
            default) is dropless.
        batch_size: Int, examples of the whole batch, which a layout divides
            into d * e parts. `None` (the default) allows any division of the
            tokens.
        dense_parameters: Int, number of parameters outside of the experts,
            including routers. Default: 0.
        dense_activations: Int, number of values per token that all layers
            except the blocks keep for the gradient. Default: 0.
        bytes_per_value: Int, bytes of one weight or activation. Default: 4,
            for float32.
        optimizer_slots: Int, number of float32 values that the optimizer keeps
            per weight. Default: 2, for Adam; SGD with momentum has 1.

    Example:

    ```python
    config = keras_moe.distribution.PlanConfig(
        tokens=4096, hidden_dim=512, intermediate_dim=2048, num_experts=8
    )
    ```
    """

    tokens: int
    hidden_dim: int
    intermediate_dim: int
    num_experts: int
    top_k: int = 2
    num_blocks: int = 1
    gated: bool = False
    use_bias: bool = True
    capacity_factor: float | None = None
    batch_size: int | None = None
    dense_parameters: int = 0
    dense_activations: int = 0
    bytes_per_value: int = 4
    optimizer_slots: int = 2

    def __post_init__(self) -> None:
        for check, names in _CHECKS.items():
            for name in names:
                value = check(name, getattr(self, name))
                object.__setattr__(self, name, value)
        checks.check_top_k(self.top_k, self.num_experts)

    @classmethod
    def of_model(cls, model: keras.Model, tokens: int, **others: Any) -> Self:
        """Return the config of a built model.

        Args:
            model: Model whose `MoEBlock`s have the same sizes, with `Expert`
                banks.
            tokens: Int, T, tokens of the whole batch.
            **others: Other fields, such as the batch size, the activations,
                and the slots, which cannot be read from a model.

        Raises:
            ValueError: If there is no block, if blocks differ, or if `others`
                has an unknown name.
        """
        check_names("PlanConfig.of_model", others, cls.__dataclass_fields__)
        blocks = find_blocks(model)
        sizes = {_sizes_of(block) for block in blocks}
        if len(sizes) != 1:
            raise ValueError(
                "`model` must have MoE blocks of one size with Expert banks. "
                f"Received: {len(blocks)} blocks of the sizes "
                f"{sorted(map(str, sizes))}. Write a PlanConfig for the "
                "largest."
            )
        fields = dict(sizes.pop())
        config = cls(
            tokens=tokens, num_blocks=len(blocks), **{**fields, **others}
        )
        all_parameters = sum(math.prod(w.shape) for w in model.weights)
        experts = config.num_blocks * config.expert_parameters()
        return dataclasses.replace(
            config, dense_parameters=all_parameters - experts
        )

    def expert_parameters(self, expert: int = 1, model: int = 1) -> int:
        """Return the number of expert parameters of a block on one device.

        Args:
            expert: Int, number of devices that share the experts. Default: 1.
            model: Int, number of devices that share one expert. Default: 1.
        """
        matrices = 3 if self.gated else 2
        inner = self.intermediate_dim // model
        each = matrices * self.hidden_dim * inner
        if self.use_bias:
            each += (matrices - 1) * inner + self.hidden_dim
        return self.num_experts // expert * each


def _sizes_of(block: Mixture) -> tuple[tuple[str, Any], ...]:
    experts = block.experts
    if not isinstance(experts, Expert) or not experts.built:
        return (("experts", type(experts).__name__),)
    return (
        ("hidden_dim", experts.hidden_dim),
        ("intermediate_dim", experts.intermediate_dim),
        ("num_experts", experts.num_experts),
        ("top_k", block.router.top_k),
        ("gated", experts.gated),
        ("use_bias", experts.use_bias),
        ("capacity_factor", block.capacity_factor),
    )


_CHECKS: dict[Callable[[str, Any], Any], tuple[str, ...]] = {
    checks.check_positive_int: (
        "tokens",
        "hidden_dim",
        "intermediate_dim",
        "num_experts",
        "top_k",
        "num_blocks",
        "bytes_per_value",
    ),
    checks.check_optional_int: ("batch_size",),
    checks.check_count: (
        "dense_parameters",
        "dense_activations",
        "optimizer_slots",
    ),
    checks.check_bool: ("gated", "use_bias"),
    checks.check_capacity_factor: ("capacity_factor",),
}
