"""What the processes of a data-parallel step share: gradients and state."""

import contextlib
import gc
import inspect

import keras
import torch
from torch import distributed

from keras_moe import _torch
from keras_moe.distribution.torch_shards import sharded_banks
from keras_moe.model_surgery.observe import own_call


class ReplicatedCall:
    """A model's `call` that goes through DDP in training.

    DDP wants a module whose `forward` it can call and whose parameters it
    reduces: `_Forward` is that, around the model's own `call`, so that Keras
    sees nothing of it.
    """

    fully_sharded = False
    running: list = []  # the calls that are in training now, outermost first

    def __init__(self, model):
        self.model = model
        self.own = own_call(model)
        parameters = inspect.signature(self.own).parameters
        self.has_training = "training" in parameters
        # Inside a call a dtype policy may cast what a variable gives out.
        self.weights = _replicated_weights(model)
        self.values = [weight.value for weight in self.weights]
        self.copied = []
        if model.__dict__.get("expert_copies") is not None:
            banks = sharded_banks(model)
            weights = [w for bank in banks for w in bank.weights]
            self.copied = [(weight, weight.value) for weight in weights]
        self.reduced: list = []
        self.moved: list = []
        self.module = None

    def __call__(self, *args, **kwargs):
        if _is_symbolic(args, kwargs):
            return self.own(*args, **kwargs)
        if not self._is_training(kwargs):
            return self.evaluate(args, kwargs)
        if self.running:  # the model around this one averages the gradients
            return self.own(*args, **kwargs)
        self.running.append(self)
        try:
            return self.train(args, kwargs)
        finally:
            self.running.remove(self)

    def train(self, args, kwargs):
        """Runs in training: the gradients become those of all processes."""
        self._check_weights()
        self.settle()
        trained = {id(value) for value in self.trained()}
        state = [
            v
            for v in self.values
            if v.is_floating_point() and id(v) not in trained
        ]
        versions = [_torch.version_of(v) for v in state]
        outputs = self.replicated()(*args, **kwargs)
        pairs = zip(state, versions, strict=True)
        self.moved = [v for v, old in pairs if _torch.version_of(v) != old]
        return outputs

    def settle(self) -> None:
        """Averages what the last training call assigned. Not at once: the
        backward pass may still need it as it was."""
        average(self.moved)
        self.moved = []

    def _is_training(self, kwargs):
        training = self.model.training
        if self.has_training:
            training = kwargs.get("training")
        return bool(training) and torch.is_grad_enabled()

    def test_step(self):
        """Returns a context around a call outside of training and its loss."""
        return contextlib.nullcontext()

    def evaluate(self, args, kwargs):
        """Runs outside of training: each process by itself."""
        return self.own(*args, **kwargs)

    def replicated(self):
        """Returns the module that training goes through; it is made anew
        where other weights are trained now."""
        dense = self.trained()
        trained = [*dense, *self.trained_copies()]
        if not _same(trained, self.reduced):
            self.module = None
            gc.collect()  # its hooks sit on the weights as long as it lives
            self.module = self.with_copies(_reduced(self.own, dense))
            self.reduced = trained
        return self.module

    def trained(self):
        """Returns the replicated weights that the model trains. It may leave
        out some that have a gradient, as an ensemble its frozen members'."""
        return self._only_trained(zip(self.weights, self.values, strict=True))

    def trained_copies(self):
        """Returns trained weights of which others hold copies, not all."""
        return self._only_trained(self.copied)

    def _only_trained(self, pairs):
        trained = {id(weight) for weight in self.model.trainable_weights}
        return [
            value
            for weight, value in pairs
            if id(weight) in trained and value.requires_grad
        ]

    def with_copies(self, module):
        """Returns a module that averages the gradients of those, too."""
        trained = self.trained_copies()
        if not trained:
            return module
        group = self.model.__dict__["expert_copies"]
        return _reduced(lambda *a, **k: module(*a, **k), trained, group)

    def _check_weights(self):
        if _same(_replicated_weights(self.model), self.weights):
            return
        raise RuntimeError(
            "`data_parallel(model)` must be called after the model has all "
            "its weights, and its experts are sharded or gathered. Received: "
            f"{self.model.name!r}, whose weights are others since. Call "
            "data_parallel(model) again."
        )


def _reduced(function, parameters, group=None):
    """The function, after whose backward pass gradients are averaged."""
    return torch.nn.parallel.DistributedDataParallel(
        _Forward(function, parameters), process_group=group, init_sync=False
    )


class _Forward(torch.nn.Module):
    """A function as a module that has parameters."""

    def __init__(self, function, parameters):
        super().__init__()
        self.function = function
        self.weights = torch.nn.ParameterList(parameters)

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


def broadcast_weights(model) -> None:
    """Gives every process the replicated weights and the seeds of rank 0."""
    sharded = _sharded_weights(model)
    for variable in model.variables:
        if id(variable) not in sharded:
            distributed.broadcast(variable.value.data, src=0)


def _is_symbolic(args, kwargs):
    tensors = keras.tree.flatten((args, kwargs))
    return any(getattr(tensor, "is_meta", False) for tensor in tensors)


def _replicated_weights(model):
    sharded = _sharded_weights(model)
    return [w for w in model.weights if id(w) not in sharded]


def _sharded_weights(model):
    banks = sharded_banks(model)
    return {id(weight) for bank in banks for weight in bank.weights}


def average(tensors) -> None:
    """Replaces float tensors by their means over the processes."""
    add_up(tensors)
    with torch.no_grad():
        for tensor in tensors:
            tensor /= distributed.get_world_size()


def add_up(tensors) -> None:
    """Replaces tensors by their sums over the processes, in one exchange."""
    if not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
    distributed.all_reduce(flat)
    sums = flat.split([t.numel() for t in tensors])
    with torch.no_grad():
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.reshape(tensor.shape))


def _same(some, others):
    return len(some) == len(others) and all(
        a is b for a, b in zip(some, others, strict=True)
    )
