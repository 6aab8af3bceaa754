"""Banks of experts that several processes share: parts, wholes, and back.

E experts, N processes; a part is E / N experts, the first axis of each of a
bank's weights and of the optimizer's slots for them.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras

from keras_moe import _keras
from keras_moe.kernels.torch.exchange import gather_shards
from keras_moe.layers.expert import Expert


def sharded_banks(model: keras.Model) -> list[Expert]:
    """Returns the banks of which this process holds a part."""
    layers = _keras.every_layer_of(model)
    return [x for x in layers if isinstance(x, Expert) and x.shard is not None]


@contextlib.contextmanager
def whole_experts(model: keras.Model) -> Iterator[None]:
    """Inside, every process holds all experts, and their optimizer's slots;
    what is written to them is kept.

    Args:
        model: any; nothing happens, and nobody waits, where nothing is
            sharded.
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


def divide(model, banks, shard) -> None:
    """Leaves this process its part of each bank, and frees the rest."""

    def own_part(tensor):
        return tensor.chunk(shard.num_parts)[shard.number].clone()

    resize(model, banks, own_part)
    for bank in banks:
        bank.shard = shard
        for weight in bank.weights:
            if weight.regularizer is not None:
                weight.regularizer = OfAllParts(weight.regularizer, shard)


def fill(model, banks, shard) -> None:
    """Makes the banks whole again, in every process."""
    resize(model, banks, lambda tensor: gather_shards(tensor, shard.group))
    for bank in banks:
        bank.shard = None
        for weight in bank.weights:
            if isinstance(weight.regularizer, OfAllParts):
                weight.regularizer = weight.regularizer.own


class OfAllParts:
    """A regularizer whose mean over the processes is that of the whole bank.

    Each process counts its part as often as there are parts, and has the
    gradient of its part once.

    Args:
        own: a regularizer that adds up over experts, as L1 and L2 do.
        shard: an `ExpertShard`.
    """

    def __init__(self, own, shard):
        self.own, self.others = own, shard.num_parts - 1

    def __call__(self, weight):
        """Returns the scalar loss of a part."""
        loss = self.own(weight)
        return loss + self.others * loss.detach()


def resize(model, banks, change: Callable) -> None:
    """Changes the first axis of the banks' weights and of their slots.

    The variables stay, so that the optimizer and the layers know them still.
    Keras has no public way to say that a variable has another shape.
    """
    for variable in variables_of(model, banks):
        parameter = variable.value
        parameter.grad = None
        parameter.data = change(parameter.data)
        _keras.put_shape(variable, parameter.shape)


def variables_of(model, banks) -> list:
    """Returns the banks' weights and the optimizer's slots for them."""
    weights = [weight for bank in banks for weight in bank.weights]
    return weights + slots_of(model, weights)


def slots_of(model, weights) -> list:
    """Returns the optimizer's variables that belong to these weights.

    Keras calls a slot after its weight's path, and what it is.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return []
    named = {_prefix(v): v for v in model.trainable_variables}
    named |= {_prefix(v): v for v in weights}
    mine = {id(weight) for weight in weights}

    def owner(slot):
        found = [name for name in named if slot.name.startswith(name)]
        return named[max(found, key=len)] if found else None

    pairs = [(slot, owner(slot)) for slot in optimizer.variables]
    return [
        slot
        for slot, weight in pairs
        if id(weight) in mine and slot.shape == weight.shape
    ]


def _prefix(variable):
    return f"{variable.path.replace('/', '_')}_"
