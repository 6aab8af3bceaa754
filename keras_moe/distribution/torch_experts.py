"""Expert parallelism on PyTorch: each process holds E / N of the E experts.

N processes, E experts. Tokens are sent to the process of their expert and back;
see `keras_moe.kernels.torch.exchange`. If there are more than N processes, each
group of N holds a copy.
"""

from typing import Any

import keras
from torch import distributed

from keras_moe import checks
from keras_moe.distribution import torch_optimizers, torch_saving
from keras_moe.distribution.torch_group import join
from keras_moe.distribution.torch_shards import (
    divide,
    fill,
    sharded_banks,
    variables_of,
)
from keras_moe.kernels import ExpertShard
from keras_moe.layers.expert import Expert
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.model_surgery.find import blocks_of, layers_of


def shard_experts(
    model: keras.Model, processes: int | None = None
) -> keras.Model:
    """Keep E / N experts of each block in each process, and free the others.

    `data_parallel(shard_experts(model))` trains like `data_parallel(model)`,
    but all processes together hold the experts, their gradients, and their
    optimizer slots only once. Each process holds routers, shared experts, and
    all other layers.

    All processes then take part in every call of the model: `fit`, `evaluate`,
    and `predict` need the same number of batches in each process, of any size.
    Call `save`, `save_weights`, and `load_weights` in every process; files
    contain whole banks and are the same for every layout. If the model was
    loaded with its optimizer, the optimizer slots are sharded, too.

    The optimizer must treat each element of a weight separately, like SGD,
    Adam, AdamW, Lion, RMSprop, and Adagrad. An optimizer whose step depends on
    a whole weight (Adafactor, Lamb, Muon) is refused in the first step; see
    `docs/optimizers-and-layouts.md`. A regularizer of the experts must be a sum
    over experts, like L1 and L2.

    Args:
        model: A built model with blocks whose `experts` are an `Expert`. The
            weights of rank 0 are sent to all processes.
        processes: Int, N, number of processes that hold all experts together.
            Ranks 0 ... N - 1 hold one copy, N ... 2N - 1 another, and so on.
            The number of processes per host is a typical value, because tokens
            are then exchanged inside a host. `None` (the default) is all
            processes.

    Returns:
        The same model object.

    Raises:
        RuntimeError: If the process was not started by torchrun or
            `keras-moe launch`.
        ValueError: If the model has no such block or is sharded already, if N
            does not divide the number of processes, or if N does not divide
            the number of experts of a block.
    """
    world = join("shard_experts")
    count = _check_processes(processes, world)
    banks = _banks_to_shard(model, count)
    shard, copies = _groups(count, world)
    model.__dict__["expert_copies"] = copies
    for variable in variables_of(model, banks):
        distributed.broadcast(variable.value.data, src=0)
    divide(model, banks, shard)
    torch_saving.install(model)
    torch_optimizers.install(model)
    return model


def gather_experts(model: keras.Model) -> keras.Model:
    """Give every process all experts again. Call it in every process.

    Args:
        model: Model that was passed to `shard_experts`.

    Returns:
        The same model object. Pass it to `data_parallel` again to train it.
    """
    banks = sharded_banks(model)
    if banks:
        fill(model, banks, banks[0].shard)
        del model.__dict__["train_step"], model.__dict__["expert_copies"]
    return model


def _groups(count: int, world: int) -> tuple[ExpertShard, Any]:
    """Return this process's shard and the group of those with the same experts.

    The group is `None` if there are no other processes with these experts.
    PyTorch requires that all processes create all groups.
    """
    rank = distributed.get_rank()
    for first in range(0, world, count):
        group = distributed.new_group(range(first, first + count))
        if first <= rank < first + count:
            shard = ExpertShard(rank - first, count, group)
    if count == world:
        return shard, None
    for number in range(count):
        group = distributed.new_group(range(number, world, count))
        if number == shard.number:
            copies = group
    return shard, copies


def _check_processes(processes: int | None, world: int) -> int:
    if processes is None:
        return world
    checks.check_positive_int("processes", processes)
    if world % processes == 0:
        return processes
    raise ValueError(
        "`processes` must divide the number of processes of the job. "
        f"Received: processes={processes}, {world} processes. Pass None to "
        "share the experts among all processes."
    )


def _banks_to_shard(model: keras.Model, count: int) -> list[Expert]:
    found = {
        id(block.experts): block.experts
        for block in blocks_of(model)
        if isinstance(getattr(block, "experts", None), Expert)
    }
    banks = list(found.values())
    if not banks:
        raise ValueError(
            "`model` must have a MoEBlock whose `experts` are an `Expert`, "
            "because only stacked weights can be sharded. Received: "
            f"{model.name!r}, {_mixtures_of(model)}. Use `data_parallel(model)`"
            " without `shard_experts`."
        )
    for bank in banks:
        if bank.shard is not None:
            raise ValueError(
                "`model` must not be sharded already. Received: "
                f"{model.name!r}, whose {bank.name!r} is sharded. Call "
                "`gather_experts(model)` before."
            )
        if bank.num_experts % count:
            raise ValueError(
                "`num_experts` must be a multiple of the number of processes "
                "that share the experts. "
                f"Received: {bank.num_experts} experts in {bank.name!r}, "
                f"{count} processes. Pass a divisor of {bank.num_experts} as "
                "`processes`, or use `data_parallel` without `shard_experts`."
            )
    return banks


def _mixtures_of(model: keras.Model) -> str:
    """Describe the mixtures of a model that cannot be sharded."""
    others = layers_of(model, MoELayer)
    held = [layer for layer in others if hasattr(layer, "experts")]
    if not held:
        return "which has no mixture of experts"
    names = {
        f"{type(layer).__name__} {layer.name!r} with experts of "
        f"{type(layer.experts).__name__}"
        for layer in held
    }
    return f"which has {', '.join(sorted(names))}"
