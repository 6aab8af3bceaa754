"""Turn the experts of a mixture into one dense network.

D hidden_dim, F intermediate_dim, E experts, K top_k, S width of the shared
expert.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import checks
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.averaging import HIDDEN_AXES, Weights
from keras_moe.compress.banks import read_experts, write_experts
from keras_moe.compress.pruning import load_of_training
from keras_moe.compress.recording import Record, observe
from keras_moe.layers import Expert, MoEBlock
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.rebuild import (
    Changes,
    Config,
    rebuild,
    replacement,
    to_array,
)

CHOICES = ("average", "load")


def to_dense(
    model: keras.Model, by: str = "average", data: Any = None
) -> keras.Model:
    """Return a model with a dense `Expert(F)` in place of every `MoEBlock`.

    The choices of the router are lost, so that the model is a start for
    fine-tuning or distillation (see `distill`). Xue et al. 2022, "One Student
    Knows All Experts Know", gather the knowledge of experts in this way. The
    outputs are exact if all experts are equal.

    - **Scale.** A block's output is a sum of experts by combine weights. If
      these sum to one, the dense network needs no scale. If they do not
      (`top_k=1`, whose weight is a probability; sigmoid scores; a
      `routed_scaling_factor`), the last matrix and bias are multiplied by the
      mean over the tokens of `data` of their sum of weights; without `data`,
      they are multiplied by the `routed_scaling_factor`, and those of each
      expert by its `expert_scale`, which is right if the weights sum to one
      before that.
    - **Shared expert.** Its hidden units are added to the others, F + S in
      all: this network is exactly the sum of both.
    - **Models with arguments** (`keras_moe.models`) become their dense twin
      with `num_experts=None`. With `moe_every` above 1, its dense blocks have
      one width, `K * F + S`: the networks are padded with units of zeros.

    The new model is not compiled. It has no routers and adds no load-balancing
    loss.

    Args:
        model: Built model. It does not change.
        by: str. `"average"` (the default) takes the mean of the experts'
            weights; `"load"` takes the expert with the largest load on `data`
            or, without `data`, in training.
        data: Inputs as `prune_experts` takes them, or None. `None` (the
            default) uses no data.

    Returns:
        A model without `MoEBlock`s.

    Raises:
        ValueError: If `by` is neither; if experts are not in an `Expert` bank,
            are shared, or are quantized; if the model has null experts, a
            gate of a shared expert, weights on inputs, or a `MixtureOfModels`;
            if a block outside `keras_moe.models` takes router inputs; or if
            `by` is `"load"`, `data` is None, and the model was never trained.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    x = np.random.normal(size=(200, 16))
    dense = keras_moe.compress.to_dense(model, data=x)
    ```
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


def _check_block(block: Mixture, owner: keras.Model | None) -> None:
    uses_inputs = block.router.router_inputs_use != "none"
    if isinstance(block, MoEBlock) and not block.router.num_null_experts:
        _check_options(block)
        if owner is not None or not uses_inputs:
            return
    raise ValueError(
        "`model` must hold only MoEBlocks without router inputs and without "
        "null experts. Received: "
        f"{block.path!r} with {type(block.router).__name__} and "
        f"num_null_experts={block.router.num_null_experts}. Build the dense "
        "model and use `distill`."
    )


def _check_options(block: MoEBlock) -> None:
    """Raise if a block multiplies tokens by what a dense network lacks."""
    has_gate = block.shared_expert_gate is not None
    if not has_gate and block.weights_on == "outputs":
        return
    raise ValueError(
        "`model` must hold only blocks whose tokens are multiplied by nothing "
        "but the combine weights of outputs: a dense network has no other "
        f"factor. Received: {block.path!r} with shared_expert_gate={has_gate} "
        f"and weights_on={block.weights_on!r}. Build the dense model and use "
        "`distill`."
    )


def _network(block: Mixture, by: str, records: dict[int, Record]) -> Weights:
    """Return the weights of the dense network for a block."""
    record = records.get(id(block))
    experts = read_experts(block.experts)
    expert_scale = getattr(block.router, "expert_scale_weight", None)
    if expert_scale is not None and record is None:
        for expert, factor in zip(experts, to_array(expert_scale), strict=True):
            scale_outputs(expert, factor)
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
    scale_outputs(network, scale)
    if block.shared_expert is None:
        return network
    return side_by_side(network, read_experts(block.shared_expert)[0])


def scale_outputs(network: Weights, scale: float) -> None:
    """Multiply the outputs of a network by a factor, in place."""
    for name in ("down_kernel", "down_bias"):
        if name in network:
            network[name] = network[name] * np.float32(scale)


def side_by_side(one: Weights, other: Weights) -> Weights:
    """Return the network whose output is the sum of two networks' outputs."""
    return {
        name: np.concatenate([one[name], other[name]], HIDDEN_AXES[name])
        if name in HIDDEN_AXES
        else one[name] + other[name]
        for name in one
    }


def _padded(network: Weights, width: int) -> Weights:
    """Return a network, padded with hidden units of zeros up to a width."""
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


def _change_block(changes: Changes, block: Mixture, network: Weights) -> None:
    """Replace a block by an `Expert` with the weights of a network."""
    style = block.experts.get_config()
    for name in ("name", "num_experts", "output_dim"):
        style.pop(name)
    style["intermediate_dim"] = network["up_kernel"].shape[1]

    def edit(config: Config) -> Config:
        return replacement(Expert.from_config({**style, "name": block.name}))

    def transfer(old: Mixture, new: Expert) -> None:
        write_experts(new, [_padded(network, new.intermediate_dim)])

    changes.edit(block, edit)
    changes.transfer(block, transfer)


def _dense_arguments(config: Config) -> Config:
    """Return the arguments of the dense twin with the width of one expert."""
    config = {**config, "num_experts": None}
    if config["moe_every"] == 1:
        config |= {"top_k": 1, "router": None}
    return config
