"""A mixture's experts as one plain network.

D hidden_dim, F intermediate_dim, E experts, K top_k, S width of the shared
expert.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import checks
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.averaging import HIDDEN_AXES
from keras_moe.compress.banks import read_experts, write_experts
from keras_moe.compress.pruning import load_of_training
from keras_moe.compress.recording import Record, observe
from keras_moe.layers import Expert, MoEBlock
from keras_moe.model_surgery.rebuild import Changes, rebuild, replacement

CHOICES = ("average", "load")


def to_dense(
    model: keras.Model, by: str = "average", data: Any = None
) -> keras.Model:
    """Returns a model in which every `MoEBlock` is a plain `Expert(F)`.

    What a router chose is lost: it is a start for fine-tuning or
    distillation (see `distill`), as in Xue et al. 2022, "One Student Knows All
    Experts Know", which gathers experts' knowledge so; it is exact where all
    experts are equal.

    - **Scale.** A block's output is a sum of experts by combine weights. Where
      these sum to one, the network stands for it as it is. Where they do not
      (`top_k=1`, whose weight is a probability; sigmoid scores; a
      `routed_scaling_factor`), the last matrix and bias are multiplied by the
      mean of a token's sum of weights on `data`; without `data`, by the
      `routed_scaling_factor` alone, which is right for sums of one.
    - **Shared expert.** Its hidden units stand beside the others, F + S in
      all: exactly the sum of both networks.
    - **Models with arguments** (`keras_moe.models`) become their dense twin
      class, `num_experts=None`. With `moe_every=n` above 1 its dense blocks
      have one width, K * F + S: the units that are missing are zero.

    The new model is not compiled; it has no routers and adds no balance loss.

    Args:
        model: a built model; it stays as it is.
        by: `"average"`, the mean of the experts' weights, or `"load"`, the
            expert with the largest load on `data` or, without, in training.
        data: inputs, as of `prune_experts`, or None.

    Returns:
        A model without `MoEBlock`s.

    Raises:
        ValueError: for an argument out of its range; experts that are no
            `Expert` bank or that blocks share, null experts, a
            `MixtureOfModels`; a block that takes router inputs or returns its
            assignment; and, by load, where there is neither that of a
            training nor `data`.
    """
    checks.check_choice("by", by, CHOICES)
    blocks = mixtures.changeable_blocks(model)
    mixtures.check_banks(blocks, "to_dense")
    for block in blocks:
        _check_block(block, mixtures.model_of_arguments(model, block))
    records = {} if data is None else observe(model, blocks, data)
    changes = Changes()
    for block in blocks:
        _change_block(changes, block, _network(block, by, records))
    for part in mixtures.models_of_arguments(model, blocks):
        changes.edit(part, _dense_arguments)
    return rebuild(model, changes)


def _check_block(block, owner):
    uses_inputs = block.router.router_inputs_use != "none"
    if isinstance(block, MoEBlock) and not block.router.num_null_experts:
        if owner is not None or not uses_inputs:
            return
    raise ValueError(
        "`to_dense` takes blocks of which nothing but the tokens goes in, and "
        "whose experts are networks. Received: "
        f"{block.path!r} with {type(block.router).__name__} and "
        f"num_null_experts={block.router.num_null_experts}. Build the dense "
        "model and use `distill`."
    )


def _network(block: MoEBlock, by: str, records: dict[int, Record]) -> dict:
    """The weights of one network for a block, by name."""
    record = records.get(id(block))
    experts = read_experts(block.experts)
    if by == "load":
        load = load_of_training(block) if record is None else record.pairs
        network = experts[int(np.argmax(load))]
    else:
        network = {
            name: np.mean([e[name] for e in experts], axis=0)
            for name in experts[0]
        }
    scale = getattr(block.router, "routed_scaling_factor", 1.0)
    if record is not None:
        scale = record.weights.sum() / max(record.units, 1)
    for name in ("down_kernel", "down_bias"):
        if name in network:
            network[name] = network[name] * np.float32(scale)
    if block.shared_expert is None:
        return network
    return side_by_side(network, read_experts(block.shared_expert)[0])


def side_by_side(one: dict, other: dict) -> dict:
    """Returns the network whose output is the sum of two networks'."""
    return {
        name: np.concatenate([one[name], other[name]], HIDDEN_AXES[name])
        if name in HIDDEN_AXES
        else one[name] + other[name]
        for name in one
    }


def _padded(network: dict, width: int) -> dict:
    """The same network with hidden units of zeros up to a width."""
    missing = width - network["up_kernel"].shape[1]
    zeros = {
        name: np.zeros(
            [
                missing if axis == HIDDEN_AXES.get(name) else size
                for axis, size in enumerate(weight.shape)
            ],
            "float32",
        )
        for name, weight in network.items()
    }
    return side_by_side(network, zeros)


def _change_block(changes, block, network):
    """Says what takes a block's place."""
    style = block.experts.get_config()
    for name in ("name", "num_experts", "output_dim"):
        style.pop(name)
    style["intermediate_dim"] = network["up_kernel"].shape[1]

    def edit(config):
        return replacement(Expert.from_config({**style, "name": block.name}))

    def transfer(old, new):
        write_experts(new, [_padded(network, new.intermediate_dim)])

    changes.edit(block, edit)
    changes.transfer(block, transfer)


def _dense_arguments(config):
    """Those of the dense twin of one expert's width."""
    config = {**config, "num_experts": None}
    if config["moe_every"] == 1:
        config |= {"top_k": 1, "router": None}
    return config
