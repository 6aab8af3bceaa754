"""Estimate the cost of layouts before a model is built, and choose one.

T tokens of a step, D hidden_dim, F intermediate_dim, E experts, K top_k; d, e,
m devices along the mesh axes data, expert, and model; R rows that the experts
of a device compute, B rows of their largest block.
"""

import math

from keras_moe import checks
from keras_moe.distribution.estimates import Estimate, Plan
from keras_moe.distribution.plan_config import PlanConfig
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.exchange import rows_of_way


def plan(config: PlanConfig, devices: int, memory: float | None = None) -> Plan:
    """Return the layout that fits into memory and sends the fewest bytes.

    The layouts are all `d * e * m = devices` in which e divides E, m divides F,
    and d * e divides the batch size. A device has T / (d e) tokens and E / e
    experts. Its costs are

    - state: `(2 + slots)` values per weight. Dense weights are whole, and
      those of experts are divided over e and m (Rajbhandari et al. 2020,
      "ZeRO", section 3.1, without its partition).
    - activations: R = K T / (d e) rows, times the capacity factor, or a
      quarter more if rows are exchanged without a capacity. A block keeps
      `R + B` rows of F / m (twice that if gated) and three of D. The peak adds
      half a row of D, B rows of F per matrix, and the gradient of the experts.
      Further rounds of a dropless exchange need the same memory again.
    - all-to-all: `4 R D (e - 1) / e` values per block, to the experts and back,
      forward and backward (GShard, Lepikhin et al. 2020, section 3.2).
    - all-reduce over n devices: `2 (n - 1) / n` of the values (Patarasuk and
      Yuan 2009, "Bandwidth optimal all-reduce", theorem 1): dense gradients
      over d e, gradients of experts over d, and tokens of D over m three times
      per block (Shoeybi et al. 2019, "Megatron-LM", section 3).

    The estimates assume balanced routing. An imbalanced router needs more
    rounds.

    Args:
        config: A `PlanConfig`, the training step.
        devices: Int, number of devices.
        memory: Float, bytes of memory per device. `None` (the default) sets no
            limit.

    Returns:
        A `Plan`. Pass `plan.best.layout` to `expert_parallel`.

    Raises:
        ValueError: If no layout fits the sizes, or if none fits the memory.

    Example:

    ```python
    config = keras_moe.distribution.PlanConfig(
        tokens=4096, hidden_dim=512, intermediate_dim=2048, num_experts=8
    )
    best = keras_moe.distribution.plan(config, devices=8, memory=80e9).best
    print(best.layout)  # arguments of `expert_parallel`
    ```
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
            "intermediate_dim, and a number of replicas that divides the batch."
            f" Received: devices={devices}, {config}. Use fewer devices, or a "
            "batch that is a multiple of them."
        )
    found.sort(key=lambda e: (e.sent_bytes, e.model, e.memory_bytes))
    roomy = [e for e in found if memory is None or e.memory_bytes <= memory]
    if not roomy:
        least = min(found, key=lambda e: e.memory_bytes)
        raise ValueError(
            f"`memory` must be at least {least.memory_bytes:,} bytes, what a "
            f"device needs with {least.layout}, the smallest layout. Received: "
            f"memory={memory:,}, devices={devices}. Use more devices, a "
            "smaller batch, a capacity, or half precision."
        )
    return Plan(roomy[0], [*roomy, *(e for e in found if e not in roomy)])


def estimate(
    config: PlanConfig, data: int, expert: int, model: int = 1
) -> Estimate:
    """Estimate the cost of a layout; see `plan`.

    Args:
        config: A `PlanConfig`, the training step.
        data: Int, d, number of devices along the mesh axis "data".
        expert: Int, e, number of devices along the mesh axis "expert".
        model: Int, m, number of devices along the mesh axis "model".
            Default: 1.

    Raises:
        ValueError: If `expert` does not divide E, `model` does not divide F,
            or `data * expert` does not divide the batch.

    Example:

    ```python
    config = keras_moe.distribution.PlanConfig(
        tokens=4096, hidden_dim=512, intermediate_dim=2048, num_experts=8
    )
    cost = keras_moe.distribution.estimate(config, data=2, expert=4)
    ```
    """
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
            f"{expert}, model={model}, {config}. Call `plan` to find sizes "
            "that fit."
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
        # Slots are float32 for weights of any dtype.
        parameters * (2 * value + 4 * config.optimizer_slots),
        value * _activations(config, tokens, expert, model),
        value * config.num_blocks * exchanged,
        value * reduced,
    )


def check_config(config: PlanConfig) -> PlanConfig:
    """Return `config` if it is a `PlanConfig`."""
    checked: PlanConfig = checks.check_is_a(
        "config",
        config,
        PlanConfig,
        "a PlanConfig",
        "Pass, for instance, PlanConfig.of_model(model, tokens=4096).",
    )
    return checked


def _all_reduced(values: int, devices: int) -> int:
    return 2 * values * (devices - 1) // devices


def _rows(config: PlanConfig, tokens: int, expert: int) -> int:
    """Return R, the rows that a device's experts can hold in one round."""
    pairs = config.top_k * tokens
    if expert == 1:
        return pairs
    capacity = None
    if config.capacity_factor is not None:
        even = pairs / config.num_experts
        capacity = math.ceil(even * config.capacity_factor)
    return expert * rows_of_way(pairs, config.num_experts, expert, capacity)


def _activations(
    config: PlanConfig, tokens: int, expert: int, model: int
) -> int:
    """Return the number of values in memory at the peak of a step."""
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


def _fits(config: PlanConfig, data: int, expert: int, model: int) -> bool:
    return (
        config.num_experts % expert == 0
        and config.intermediate_dim % model == 0
        and (config.batch_size or config.tokens) % (data * expert) == 0
    )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
