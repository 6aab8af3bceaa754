"""Small weights, or whole hidden units, leave the experts.

D hidden_dim, F intermediate_dim, E experts, S width of the shared expert.
"""

import keras
import numpy as np

from keras_moe import _keras, checks
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.averaging import take_units
from keras_moe.compress.banks import read_experts, write_experts
from keras_moe.layers import Expert
from keras_moe.model_surgery.rebuild import Changes, rebuild

GRANULARITIES = ("unstructured", "structured")


def prune_weights(
    model: keras.Model, sparsity: float, granularity: str = "unstructured"
) -> keras.Model:
    """Returns a model whose experts have fewer weights, by magnitude.

    In every `Expert` of the model, each network by itself: routed experts,
    shared experts and dense networks. Routers, attention and experts of
    other kinds stay.

    - `"unstructured"`: of each kernel the share `sparsity` that is smallest in
      absolute value becomes zero (Han et al. 2015, "Learning both Weights and
      Connections"). Shapes stay: it saves room where a file is compressed,
      and time in no dense product. Training moves the zeros again.
    - `"structured"`: of each expert the share `sparsity` of its F hidden units
      goes, those with the smallest product of the norms of what comes in
      (kernel, gate and bias) and what goes out, and the matrices become
      smaller. For ReLU that does not change where a unit's input is scaled
      up and its output down by as much. A unit that gives nothing, or gets
      nothing and maps zero to zero, goes without a trace.

    The new model is not compiled; fine-tune it for an epoch.

    Args:
        model: a built model; it stays as it is.
        sparsity: share of weights or units, 0 <= sparsity < 1.
        granularity: one of the two.

    Returns:
        A model of the same class.

    Raises:
        ValueError: for an argument out of its range, a model without an
            `Expert`, parts that blocks share, and quantised experts.
    """
    checks.check_rate("sparsity", sparsity)
    checks.check_choice("granularity", granularity, GRANULARITIES)
    banks = _banks_of(model)
    changes = Changes()
    if granularity == "unstructured":
        for bank in banks:
            changes.transfer(bank, lambda old, new: _zero(old, new, sparsity))
        return rebuild(model, changes)
    for bank in banks:
        _shrink(changes, bank, sparsity)
    _shrink_arguments(changes, model, sparsity)
    return rebuild(model, changes)


def _banks_of(model):
    mixtures.check_model(model)
    layers = _keras.every_layer_of(model)
    banks = [x for x in layers if isinstance(x, Expert)]
    if not banks:
        raise ValueError(
            "`model` must hold an `Expert`, in a MoEBlock or by itself. "
            f"Received: model {model.name!r} without one. Other layers are "
            "not pruned."
        )
    mixtures.check_parts(banks, model)
    return banks


def _zero(old, new, sparsity):
    """Copies a bank; the smallest weights of each kernel become zero."""
    experts = read_experts(old)
    for expert in experts:
        for name, weight in expert.items():
            if name.endswith("kernel"):
                _zero_smallest(weight, sparsity)
    write_experts(new, experts)


def _zero_smallest(kernel, sparsity):
    flat = np.abs(kernel).ravel()
    smallest = np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]
    kernel.flat[smallest] = 0


def units_left(width: int, sparsity: float) -> int:
    """Returns how many of F hidden units stay, 1 at least."""
    return max(1, width - round(sparsity * width))


def _shrink(changes, bank, sparsity):
    """Says what becomes of a bank's config and weights."""

    def edit(config):
        left = units_left(config["intermediate_dim"], sparsity)
        return {**config, "intermediate_dim": left}

    def transfer(old, new):
        experts = [
            take_units(expert, largest_units(expert, new.intermediate_dim))
            for expert in read_experts(old)
        ]
        write_experts(new, experts)

    changes.edit(bank, edit)
    changes.transfer(bank, transfer)


def largest_units(expert: dict[str, np.ndarray], number: int) -> np.ndarray:
    """Returns the hidden units that matter most, in their order.

    Args:
        expert: weights by name; see `averaging.py`.
        number: how many.
    """
    incoming = sum(
        (expert[name].reshape(-1, expert[name].shape[-1]) ** 2).sum(0)
        for name in ("up_kernel", "up_bias", "gate_kernel", "gate_bias")
        if name in expert
    )
    outgoing = (expert["down_kernel"] ** 2).sum(1)
    best = np.argsort(-(incoming * outgoing), kind="stable")[:number]
    return np.sort(best)


def _shrink_arguments(changes, model, sparsity):
    """Says what becomes of shared experts, which a block builds from an
    argument, and of models that build all from arguments."""

    def edit(config):
        names = ("intermediate_dim", "shared_expert_dim")
        return config | {
            name: units_left(config[name], sparsity)
            for name in names
            if config.get(name) is not None
        }

    def edit_block(config):
        shared = config["shared_expert_dim"]
        return {**config, "shared_expert_dim": units_left(shared, sparsity)}

    for layer in _keras.every_layer_of(model):
        if hasattr(layer, "moe_blocks"):
            changes.edit(layer, edit)
        elif getattr(layer, "shared_expert", None) is not None:
            changes.edit(layer, edit_block)
