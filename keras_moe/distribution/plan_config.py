"""A training step, as the planner needs it.

T tokens of a step, D hidden_dim, F intermediate_dim, E experts, K top_k.
"""

import dataclasses
import math

import keras

from keras_moe import checks
from keras_moe.layers import Expert
from keras_moe.layers.argument_names import check_names
from keras_moe.model_surgery.find import find_blocks


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """A training step of a model with MoE blocks of one size.

    Args:
        tokens: T, of the whole batch.
        hidden_dim, intermediate_dim, num_experts, top_k: D, F, E, K.
        num_blocks: MoE blocks of these sizes.
        gated, use_bias: of the experts.
        capacity_factor: of the blocks; None is dropless.
        batch_size: examples of the whole batch, which a layout cuts into d * e
            parts; None where each token may be one.
        dense_parameters: weights outside of the experts, routers included.
        dense_activations: floats that all layers but the blocks keep for the
            gradient, a token.
        bytes_per_value: of weights and activations, 4 for float32.
        optimizer_slots: floats that the optimizer keeps for a weight: 2 for
            Adam, 1 for SGD with momentum.
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

    def __post_init__(self):
        for check, names in _CHECKS.items():
            for name in names:
                value = check(name, getattr(self, name))
                object.__setattr__(self, name, value)
        checks.check_top_k(self.top_k, self.num_experts)

    @classmethod
    def of_model(cls, model: keras.Model, tokens: int, **others):
        """Reads the sizes from a built model.

        Args:
            model: whose `MoEBlock`s are alike, with `Expert` banks.
            tokens: T.
            **others: fields that a model does not tell: the batch size,
                activations, slots.

        Raises:
            ValueError: where there is no block, or blocks differ.
        """
        check_names("PlanConfig.of_model", others, cls.__dataclass_fields__)
        blocks = find_blocks(model)
        sizes = {_sizes_of(block) for block in blocks}
        if len(sizes) != 1:
            raise ValueError(
                "`model` must have MoE blocks, all of one size, with Expert "
                f"banks. Received: {len(blocks)} blocks, of the sizes "
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
        """Weights of a block's experts on one device."""
        matrices = 3 if self.gated else 2
        inner = self.intermediate_dim // model
        each = matrices * self.hidden_dim * inner
        if self.use_bias:
            each += (matrices - 1) * inner + self.hidden_dim
        return self.num_experts // expert * each


def _sizes_of(block):
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


_CHECKS: dict = {
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
