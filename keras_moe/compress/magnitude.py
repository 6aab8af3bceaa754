"""Remove small weights, or whole hidden units, of experts.

D hidden_dim, F intermediate_dim, E experts, S width of the shared expert.
"""

import keras
import numpy as np

from keras_moe import _keras, checks
from keras_moe.compress import changeable_blocks as mixtures
from keras_moe.compress.averaging import Weights, take_units
from keras_moe.compress.banks import read_experts, write_experts
from keras_moe.layers import Expert
from keras_moe.model_surgery.rebuild import Changes, Config, rebuild

GRANULARITIES = ("unstructured", "structured")


def prune_weights(
    model: keras.Model, sparsity: float, granularity: str = "unstructured"
) -> keras.Model:
    """Return a model whose experts have fewer weights, by magnitude.

    Every network of every `Expert` is pruned by itself: routed experts, shared
    experts, and dense networks. Routers, attention, and experts of other kinds
    do not change.

    - `"unstructured"` sets the smallest weights of each kernel, by absolute
      value, to zero (Han et al. 2015, "Learning both Weights and
      Connections"). Shapes do not change: compressed files become smaller, but
      no product becomes faster. Training changes the zeros again.
    - `"structured"` removes hidden units of each expert, so that its matrices
      become smaller: those with the smallest product of the norms of incoming
      weights (kernel, gate, and bias) and outgoing weights. Scaling a unit's
      input up and its output down by the same factor does not change the
      product. A unit whose outgoing weights are zero is removed without a
      change of the outputs, and so is a unit whose incoming weights are zero if
      the activation maps zero to zero.

    The new model is not compiled; fine-tune it for an epoch.

    Args:
        model: Built model. It does not change.
        sparsity: float in 0 <= sparsity < 1. Fraction of the weights or of the
            hidden units to remove.
        granularity: str. `"unstructured"` (the default) or `"structured"`.

    Returns:
        A model of the same class.

    Raises:
        ValueError: If an argument is out of its range, if `model` has no
            `Expert` or is not built, or if an `Expert` is shared or quantized.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    smaller = keras_moe.compress.prune_weights(
        model, sparsity=0.5, granularity="structured"
    )
    ```
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


def _banks_of(model: keras.Model) -> list[Expert]:
    mixtures.check_model(model)
    layers = _keras.every_layer_of(model)
    banks = [x for x in layers if isinstance(x, Expert)]
    if not banks:
        raise ValueError(
            "`model` must hold an `Expert`, in a MoEBlock or by itself: other "
            f"layers are not pruned. Received: model {model.name!r} without "
            "one. Pass a model with experts."
        )
    mixtures.check_parts(banks, model)
    return banks


def _zero(old: Expert, new: Expert, sparsity: float) -> None:
    """Copy a bank, with the smallest weights of each kernel set to zero."""
    experts = read_experts(old)
    for expert in experts:
        for name, weight in expert.items():
            if name.endswith("kernel"):
                _zero_smallest(weight, sparsity)
    write_experts(new, experts)


def _zero_smallest(kernel: np.ndarray, sparsity: float) -> None:
    flat = np.abs(kernel).ravel()
    smallest = np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]
    kernel.flat[smallest] = 0


def units_left(width: int, sparsity: float) -> int:
    """Return how many of F hidden units are kept, 1 at least."""
    return max(1, width - round(sparsity * width))


def _shrink(changes: Changes, bank: Expert, sparsity: float) -> None:
    """Change the config and the weights of a bank."""

    def edit(config: Config) -> Config:
        left = units_left(config["intermediate_dim"], sparsity)
        return {**config, "intermediate_dim": left}

    def transfer(old: Expert, new: Expert) -> None:
        experts = [
            take_units(expert, largest_units(expert, new.intermediate_dim))
            for expert in read_experts(old)
        ]
        write_experts(new, experts)

    changes.edit(bank, edit)
    changes.transfer(bank, transfer)


def largest_units(expert: Weights, number: int) -> np.ndarray:
    """Return the indices of the hidden units with the largest norms, sorted.

    Args:
        expert: Dict of arrays, as `averaging.py` describes it.
        number: int in 1 ... F. How many units.
    """
    incoming = sum(
        (expert[name].reshape(-1, expert[name].shape[-1]) ** 2).sum(0)
        for name in ("up_kernel", "up_bias", "gate_kernel", "gate_bias")
        if name in expert
    )
    outgoing = (expert["down_kernel"] ** 2).sum(1)
    best = np.argsort(-(incoming * outgoing), kind="stable")[:number]
    return np.sort(best)


def _shrink_arguments(
    changes: Changes, model: keras.Model, sparsity: float
) -> None:
    """Change the arguments from which blocks and models build their experts.

    A block builds its shared expert from an argument, and a model of
    `keras_moe.models` all of its experts.
    """

    def edit(config: Config) -> Config:
        names = ("intermediate_dim", "shared_expert_dim")
        return config | {
            name: units_left(config[name], sparsity)
            for name in names
            if config.get(name) is not None
        }

    def edit_block(config: Config) -> Config:
        shared = config["shared_expert_dim"]
        return {**config, "shared_expert_dim": units_left(shared, sparsity)}

    for layer in _keras.every_layer_of(model):
        if hasattr(layer, "moe_blocks"):
            changes.edit(layer, edit)
        elif getattr(layer, "shared_expert", None) is not None:
            changes.edit(layer, edit_block)
