"""What a layout costs before anything is built, and which one to take.

T tokens of a step, D hidden_dim, F intermediate_dim, E experts, K top_k; d, e,
m devices along the mesh axes data, expert and model; R rows that a device's
experts compute, B rows of their largest block.
"""

import math
from typing import NamedTuple

from keras_moe import checks
from keras_moe.distribution.plan_config import PlanConfig
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.exchange import rows_of_way


class Estimate(NamedTuple):
    """One layout, and what each of its devices bears in a training step.

    data, expert, model: devices along each axis of the mesh.
    parameters: weights.
    state_bytes: of weights, gradients and the optimizer's slots.
    activation_bytes: at the peak of the step.
    all_to_all_bytes: sent to other devices, rows to experts and back.
    all_reduce_bytes: sent to sum gradients, and parts of F.
    """

    data: int
    expert: int
    model: int
    parameters: int
    state_bytes: int
    activation_bytes: int
    all_to_all_bytes: int
    all_reduce_bytes: int

    @property
    def memory_bytes(self) -> int:
        """State and activations."""
        return self.state_bytes + self.activation_bytes

    @property
    def sent_bytes(self) -> int:
        """All that a device sends in a step."""
        return self.all_to_all_bytes + self.all_reduce_bytes

    @property
    def layout(self) -> dict:
        """The arguments of `expert_parallel`."""
        return {
            "data": self.data,
            "expert": self.expert,
            "model": self.model,
        }


class Plan(NamedTuple):
    """The layout to take, and all that were compared, the best first."""

    best: Estimate
    estimates: list[Estimate]


def plan(config: PlanConfig, devices: int, memory: float | None = None) -> Plan:
    """Returns the layout whose devices send least and have room.

    For each `d * e * m = devices` with e a divisor of E, m of F and d * e of
    the batch size, a device has T / (d e) tokens and E / e experts, and

    - state: `(2 + slots)` values for each weight: dense ones whole, experts'
      over e and m (Rajbhandari et al. 2020, "ZeRO", section 3.1, without its
      partition);
    - activations: R = K T / (d e) rows, by the factor of the capacity, or a
      quarter more where they travel without one. A block keeps
      `R + B` rows of F / m (twice gated) and three of D; at the peak half a
      row more of D lives, B rows of F for each matrix, and the gradient of the
      experts. Dropless rounds behind the first have room for as much again;
    - all-to-all: `4 R D (e - 1) / e` values a block, there and back, forward
      and backward (GShard, Lepikhin et al. 2020, section 3.2);
    - all-reduce of n devices: `2 (n - 1) / n` of the values (Patarasuk and
      Yuan 2009, "Bandwidth optimal all-reduce", theorem 1): dense gradients
      over d e, experts' over d, tokens of D over m three times a block
      (Shoeybi et al. 2019, "Megatron-LM", section 3).

    Balanced routing is taken for granted; an uneven router takes more rounds.

    Args:
        config: the step.
        devices: how many there are.
        memory: bytes of each; None is any.

    Raises:
        ValueError: where no layout fits the sizes, or the memory.
    """
    check_config(config)
    devices = checks.check_positive_int("devices", devices)
    if memory is not None:
        memory = checks.check_above("memory", memory, 0, float("inf"))
    found = [
        estimate(config, data, expert, devices // (data * expert))
        for data in _divisors(devices)
        for expert in _divisors(devices // data)
        if _fits(config, data, expert, devices // (data * expert))
    ]
    if not found:
        raise ValueError(
            "`devices` must be a product of a divisor of num_experts, one of "
            "intermediate_dim and a number of replicas that divide the batch."
            f" Received: devices={devices}, {config}. Take fewer devices, or "
            "a batch that is a multiple of them."
        )
    found.sort(key=lambda e: (e.sent_bytes, e.model, e.memory_bytes))
    roomy = [e for e in found if memory is None or e.memory_bytes <= memory]
    if not roomy:
        least = min(found, key=lambda e: e.memory_bytes)
        raise ValueError(
            f"`memory` must hold a device's part: {least.memory_bytes:,} bytes "
            f"with {least.layout}, the least of all layouts. Received: memory="
            f"{memory:,}, devices={devices}. Take more devices, a smaller "
            "batch, a capacity, or half floats."
        )
    return Plan(roomy[0], [*roomy, *(e for e in found if e not in roomy)])


def estimate(
    config: PlanConfig, data: int, expert: int, model: int = 1
) -> Estimate:
    """Returns what a layout costs; see `plan`."""
    check_config(config)
    data, expert, model = (
        checks.check_positive_int(name, value)
        for name, value in (
            ("data", data),
            ("expert", expert),
            ("model", model),
        )
    )
    if not _fits(config, data, expert, model):
        raise ValueError(
            "`expert` must divide num_experts, `model` intermediate_dim, and "
            f"`data` * `expert` the batch. Received: data={data}, expert="
            f"{expert}, model={model}, {config}. Call `plan` for what fits."
        )
    shards = data * expert
    value = config.bytes_per_value
    tokens = config.tokens // shards
    experts = config.num_blocks * config.expert_parameters(expert, model)
    parameters = config.dense_parameters + experts
    width = tokens * config.hidden_dim
    exchanged = 0
    if expert > 1:
        rows = _rows(config, tokens, expert)
        exchanged = 4 * rows * config.hidden_dim * (expert - 1) // expert
    reduced = _all_reduced(config.dense_parameters, shards)
    reduced += _all_reduced(experts, data)
    reduced += config.num_blocks * 3 * _all_reduced(width, model)
    return Estimate(
        data,
        expert,
        model,
        parameters,
        # Slots are float32 whatever the weights are.
        parameters * (2 * value + 4 * config.optimizer_slots),
        value * _activations(config, tokens, expert, model),
        value * config.num_blocks * exchanged,
        value * reduced,
    )


def check_config(config: PlanConfig) -> PlanConfig:
    """Return `config` if it is a `PlanConfig`."""
    return checks.check_is_a(
        "config",
        config,
        PlanConfig,
        "a PlanConfig",
        "Pass, for instance, PlanConfig.of_model(model, tokens=4096).",
    )


def _all_reduced(values, devices):
    return 2 * values * (devices - 1) // devices


def _rows(config, tokens, expert):
    """R: the rows that a device's experts have room for, in one round."""
    pairs = config.top_k * tokens
    if expert == 1:
        return pairs
    capacity = None
    if config.capacity_factor is not None:
        even = pairs / config.num_experts
        capacity = math.ceil(even * config.capacity_factor)
    return expert * rows_of_way(pairs, config.num_experts, expert, capacity)


def _activations(config, tokens, expert, model):
    """Values that live at the peak of a step."""
    rows = _rows(config, tokens, expert)
    block = block_sizes(rows, config.num_experts // expert)[-1]
    inner = config.intermediate_dim // model
    gates = 1 + config.gated
    kept = (rows + block) * (gates * inner + 3 * config.hidden_dim)
    working = (rows + block) * config.hidden_dim * 0.5
    working += block * inner * (1.5 + gates)
    working += config.expert_parameters(expert, model)
    if expert > 1 and config.capacity_factor is None:
        working += kept + (rows + block) * config.hidden_dim * 0.5
    dense = config.dense_activations * tokens
    return int(config.num_blocks * kept + working + dense)


def _fits(config, data, expert, model):
    return (
        config.num_experts % expert == 0
        and config.intermediate_dim % model == 0
        and (config.batch_size or config.tokens) % (data * expert) == 0
    )


def _divisors(number):
    return [d for d in range(1, number + 1) if number % d == 0]
