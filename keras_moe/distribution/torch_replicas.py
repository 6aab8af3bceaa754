"""Share gradients and state between processes in a data-parallel step."""

import contextlib
import gc
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import keras
import torch
from torch import distributed

from keras_moe import _torch
from keras_moe.distribution.torch_shards import sharded_banks
from keras_moe.model_surgery.observe import own_call


class ReplicatedCall:
    """Run a model's `call` through DDP in training.

    DDP needs a module with a `forward` and the parameters to reduce. `_Forward`
    is such a module around the model's own `call`, invisible to Keras.

    Args:
        model: A built model.
    """

    fully_sharded = False
    # The calls that are in training now, the outermost first.
    running: ClassVar[list["ReplicatedCall"]] = []

    def __init__(self, model: keras.Model):
        self.model = model
        self.own = own_call(model)
        parameters = inspect.signature(self.own).parameters
        self.has_training = "training" in parameters
        # Inside a call, a dtype policy may cast the values of variables.
        self.weights = _replicated_weights(model)
        self.values = [weight.value for weight in self.weights]
        self.copied: list[tuple[keras.Variable, torch.Tensor]] = []
        if model.__dict__.get("expert_copies") is not None:
            banks = sharded_banks(model)
            weights = [w for bank in banks for w in bank.weights]
            self.copied = [(weight, weight.value) for weight in weights]
        self.reduced: list[torch.Tensor] = []
        self.moved: list[torch.Tensor] = []
        self.module: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
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

    def train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model in training, and average gradients over processes."""
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
        """Average the weights that the last training call assigned.

        That call cannot average them, because its backward pass may need the
        old values.
        """
        average(self.moved)
        self.moved = []

    def _is_training(self, kwargs: dict[str, Any]) -> bool:
        training = self.model.training
        if self.has_training:
            training = kwargs.get("training")
        return bool(training) and torch.is_grad_enabled()

    def test_step(self) -> contextlib.AbstractContextManager[None]:
        """Return a context for a call outside of training and its loss."""
        return contextlib.nullcontext()

    def evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model outside of training, in this process alone."""
        return self.own(*args, **kwargs)

    def replicated(self) -> Any:
        """Return the module for training.

        A new one is made if the trained weights have changed.
        """
        dense = self.trained()
        trained = [*dense, *self.trained_copies()]
        if not _same(trained, self.reduced):
            self.module = None
            gc.collect()  # removes the hooks of the old module
            self.module = self.with_copies(_reduced(self.own, dense))
            self.reduced = trained
        return self.module

    def trained(self) -> list[torch.Tensor]:
        """Return the replicated weights that the model trains.

        They do not include all weights with a gradient: an ensemble leaves out
        those of frozen members.
        """
        return self._only_trained(zip(self.weights, self.values, strict=True))

    def trained_copies(self) -> list[torch.Tensor]:
        """Return trained weights that some, but not all, processes hold."""
        return self._only_trained(self.copied)

    def _only_trained(
        self, pairs: Iterable[tuple[keras.Variable, torch.Tensor]]
    ) -> list[torch.Tensor]:
        trained = {id(weight) for weight in self.model.trainable_weights}
        return [
            value
            for weight, value in pairs
            if id(weight) in trained and value.requires_grad
        ]

    def with_copies(self, module: Any) -> Any:
        """Return a module that averages gradients of `trained_copies`, too."""
        trained = self.trained_copies()
        if not trained:
            return module
        group = self.model.__dict__["expert_copies"]
        return _reduced(lambda *a, **k: module(*a, **k), trained, group)

    def _check_weights(self) -> None:
        if _same(_replicated_weights(self.model), self.weights):
            return
        raise RuntimeError(
            "`data_parallel(model)` must be called after the model has all its "
            "weights, and after its experts are sharded or gathered. Received: "
            f"{self.model.name!r}, whose weights have changed since. Call "
            "data_parallel(model) again."
        )


def _reduced(
    function: Callable[..., Any],
    parameters: Iterable[torch.Tensor],
    group: Any = None,
) -> torch.nn.Module:
    """Return a module of a function that averages gradients over a group."""
    return torch.nn.parallel.DistributedDataParallel(
        _Forward(function, parameters), process_group=group, init_sync=False
    )


class _Forward(torch.nn.Module):
    """Wrap a function as a module with parameters.

    Args:
        function: Function that the module calls.
        parameters: The parameters.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        parameters: Iterable[torch.Tensor],
    ):
        super().__init__()
        self.function = function
        self.weights = torch.nn.ParameterList(parameters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def broadcast_weights(model: keras.Model) -> None:
    """Send the replicated weights and the seeds of rank 0 to all processes."""
    sharded = _sharded_weights(model)
    for variable in model.variables:
        if id(variable) not in sharded:
            distributed.broadcast(variable.value.data, src=0)


def _is_symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    tensors = keras.tree.flatten((args, kwargs))
    return any(getattr(tensor, "is_meta", False) for tensor in tensors)


def _replicated_weights(model: keras.Model) -> list[keras.Variable]:
    sharded = _sharded_weights(model)
    return [w for w in model.weights if id(w) not in sharded]


def _sharded_weights(model: keras.Model) -> set[int]:
    """Return the ids of the weights of sharded experts."""
    banks = sharded_banks(model)
    return {id(weight) for bank in banks for weight in bank.weights}


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace float tensors by their means over the processes, in place."""
    add_up(tensors)
    with torch.no_grad():
        for tensor in tensors:
            tensor /= distributed.get_world_size()


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their sums over the processes, in one all-reduce."""
    if not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1).float() for t in tensors])
    distributed.all_reduce(flat)
    sums = torch.split(flat, [t.numel() for t in tensors])
    with torch.no_grad():
        for tensor, total in zip(tensors, sums, strict=True):
            tensor.copy_(total.reshape(tensor.shape))


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether two sequences have the same objects."""
    return len(some) == len(others) and all(
        a is b for a, b in zip(some, others, strict=True)
    )
