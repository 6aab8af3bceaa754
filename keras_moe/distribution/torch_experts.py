"""Expert parallelism on PyTorch: each process holds E / N of the E experts.

N processes, E experts. Tokens travel to the process of their expert and back;
see `keras_moe.kernels.torch.exchange`. Where there are more processes than N,
each N of them hold a copy.
"""

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
    """Leaves each process E / N experts of every block, and frees the rest.

    `data_parallel(shard_experts(model))` trains as `data_parallel(model)`
    does, with the experts, their gradients and their optimizer's slots held
    once by all processes together. Routers, shared experts and everything
    else stay on each.

    Every call of the model is then one of all processes: `fit`, `evaluate`
    and `predict` need as many batches in each, of any size. `save`,
    `save_weights` and `load_weights` must be called in every process; files
    hold whole banks and are the same under every layout. A model that was
    loaded with its optimizer can be sharded; its slots are, too.

    An optimizer must treat each element of a weight by itself, as SGD, Adam,
    AdamW, Lion, RMSprop, and Adagrad do. One whose step depends on a whole
    weight (Adafactor, Lamb, Muon) is refused in the first step; the page
    `docs/optimizers-and-layouts.md` has the table. A regularizer of the experts
    must add up over them, as L1 and L2 do.

    Args:
        model: a built model with blocks whose `experts` are an `Expert`. The
            weights of rank 0 are taken.
        processes: N, how many processes hold the experts together: ranks 0
            ... N - 1, N ... 2N - 1, and so on, a copy each. The processes of
            a host are a start, between which tokens travel fast. None is all.

    Returns:
        The same model.

    Raises:
        RuntimeError: outside torchrun and `keras-moe launch`.
        ValueError: for a model without such a block, banks of which E does
            not divide by N, an N that does not divide the number of
            processes, or a model that is sharded already.
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
    """Gives every process all experts again; every process must call it.

    Args:
        model: that `shard_experts` returned.

    Returns:
        The same model; pass it to `data_parallel` again to train it.
    """
    banks = sharded_banks(model)
    if banks:
        fill(model, banks, banks[0].shard)
        del model.__dict__["train_step"], model.__dict__["expert_copies"]
    return model


def _groups(count, world):
    """This process's shard, and the group of those with the same experts,
    None where there are no others. All processes make all groups."""
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


def _check_processes(processes, world):
    if processes is None:
        return world
    checks.check_positive_int("processes", processes)
    if world % processes == 0:
        return processes
    raise ValueError(
        "`processes` must divide the number of processes that there are. "
        f"Received: processes={processes}, {world} processes. None shares the "
        "experts among all."
    )


def _banks_to_shard(model, count):
    found = {
        id(block.experts): block.experts
        for block in blocks_of(model)
        if isinstance(getattr(block, "experts", None), Expert)
    }
    banks = list(found.values())
    if not banks:
        raise ValueError(
            "`model` must have a MoEBlock whose `experts` are an `Expert`: "
            "their weights are stacked, and each token travels to the process "
            f"of its expert. Received: {model.name!r}, {_mixtures_of(model)}. "
            "Pass it to `data_parallel` alone."
        )
    for bank in banks:
        if bank.shard is not None:
            raise ValueError(
                "`model` must not be sharded already. Received: "
                f"{model.name!r}, whose {bank.name!r} is. Call "
                "`gather_experts(model)` before."
            )
        if bank.num_experts % count:
            raise ValueError(
                "`num_experts` must divide by the number of processes that "
                "share the experts. "
                f"Received: {bank.num_experts} experts in {bank.name!r}, "
                f"{count} processes. Pass a divisor of {bank.num_experts} as "
                "`processes`, or use `data_parallel` alone."
            )
    return banks


def _mixtures_of(model):
    """What a model has instead, in the words of an error."""
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
