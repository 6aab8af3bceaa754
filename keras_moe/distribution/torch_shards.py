"""Divide banks of experts over processes, and make them whole again.

E experts, N processes. A part is E / N experts along the first axis of each
weight of a bank and of its optimizer slots.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import keras

from keras_moe import _keras
from keras_moe.kernels import ExpertShard
from keras_moe.kernels.torch.exchange import gather_shards
from keras_moe.layers.expert import Expert
from keras_moe.types import Tensor

Regularizer: TypeAlias = Callable[[Tensor], Tensor]


def sharded_banks(model: keras.Model) -> list[Expert]:
    """Return the banks of which this process holds a part."""
    layers = _keras.every_layer_of(model)
    return [x for x in layers if isinstance(x, Expert) and x.shard is not None]


@contextlib.contextmanager
def whole_experts(model: keras.Model) -> Iterator[None]:
    """Make experts and their optimizer slots whole in every process inside.

    At the end, each process keeps its part of what was assigned to them.

    Args:
        model: Any model. If nothing is sharded, nothing happens, and no process
            waits for others.
    """
    banks = sharded_banks(model)
    if not banks:
        yield
        return
    shard = banks[0].shard
    fill(model, banks, shard)
    try:
        yield
    finally:
        divide(model, banks, shard)


def divide(model: keras.Model, banks: Sequence[Expert], shard: Any) -> None:
    """Keep this process's part of each bank, and free the rest.

    Args:
        model: Model that contains the banks.
        banks: Whole banks.
        shard: `ExpertShard` of this process.
    """

    def own_part(tensor: Tensor) -> Tensor:
        return tensor.chunk(shard.num_parts)[shard.number].clone()

    resize(model, banks, own_part)
    for bank in banks:
        bank.shard = shard
        for weight in bank.weights:
            if weight.regularizer is not None:
                weight.regularizer = OfAllParts(weight.regularizer, shard)


def fill(model: keras.Model, banks: Sequence[Expert], shard: Any) -> None:
    """Make sharded banks whole again, in every process.

    Args:
        model: Model that contains the banks.
        banks: Sharded banks.
        shard: `ExpertShard` of this process.
    """
    resize(model, banks, lambda tensor: gather_shards(tensor, shard.group))
    for bank in banks:
        bank.shard = None
        for weight in bank.weights:
            if isinstance(weight.regularizer, OfAllParts):
                weight.regularizer = weight.regularizer.own


class OfAllParts:
    """Regularize a part so that the mean over processes is that of the bank.

    The loss of a part is multiplied by the number of parts, but its gradient
    is not.

    Args:
        own: Regularizer that is a sum over experts, like L1 and L2.
        shard: `ExpertShard` of this process.
    """

    def __init__(self, own: Regularizer, shard: ExpertShard):
        self.own, self.others = own, shard.num_parts - 1

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the scalar loss of a part."""
        loss = self.own(weight)
        return loss + self.others * loss.detach()


def resize(
    model: keras.Model,
    banks: Sequence[Expert],
    change: Callable[[Tensor], Tensor],
) -> None:
    """Change the first axis of the banks' weights and optimizer slots.

    The variables remain the same objects for the optimizer and the layers.
    Keras has no public method that changes the shape of a variable.

    Args:
        model: Model that contains the banks.
        banks: The banks.
        change: Function from a tensor to the tensor with another first axis.
    """
    for variable in variables_of(model, banks):
        parameter = variable.value
        parameter.grad = None
        parameter.data = change(parameter.data)
        _keras.put_shape(variable, parameter.shape)


def variables_of(
    model: keras.Model, banks: Sequence[Expert]
) -> list[keras.Variable]:
    """Return the banks' weights and their optimizer slots."""
    weights = [weight for bank in banks for weight in bank.weights]
    return weights + slots_of(model, weights)


def slots_of(
    model: keras.Model, weights: Sequence[keras.Variable]
) -> list[keras.Variable]:
    """Return the optimizer slots of some weights.

    Keras names a slot after the path of its weight and the kind of the slot.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return []
    named = {_prefix(v): v for v in model.trainable_variables}
    named |= {_prefix(v): v for v in weights}
    mine = {id(weight) for weight in weights}

    def owner(slot: keras.Variable) -> keras.Variable | None:
        found = [name for name in named if slot.name.startswith(name)]
        return named[max(found, key=len)] if found else None

    pairs = [(slot, owner(slot)) for slot in optimizer.variables]
    return [
        slot
        for slot, weight in pairs
        if weight is not None
        and id(weight) in mine
        and slot.shape == weight.shape
    ]


def _prefix(variable: keras.Variable) -> str:
    return f"{variable.path.replace('/', '_')}_"
