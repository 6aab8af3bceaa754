"""Fully sharded data parallelism on PyTorch: FSDP2 within `model.fit`.

N processes. Between steps, each process holds 1 / N of each weight and of its
optimizer slots, as DTensors. It holds whole weights only during a step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import torch
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from keras_moe import _keras
from keras_moe.distribution.torch_replicas import ReplicatedCall
from keras_moe.distribution.torch_shards import sharded_banks, slots_of


class FullyShardedCall(ReplicatedCall):
    """Run a model's `call` through FSDP2.

    `fully_shard` replaces the parameters of its module whenever it gathers or
    frees the weights. `_FollowedWeights` assigns them to the Keras variables,
    so that layers, optimizer, and model use the present parameters.

    Args:
        model: A built model that has trainable weights.
    """

    fully_sharded = True
    testing = False

    def __init__(self, model: keras.Model):
        super().__init__(model)
        trained = {id(weight) for weight in model.trainable_weights}
        self.variables = [w for w in self.weights if id(w) in trained]
        _check_ranks(model, self.variables)
        self.module = _FollowedWeights(self.own, self.variables)
        fsdp.fully_shard(self.module, reshard_after_forward=False)
        self.training_module = self.with_copies(self.module)
        sharded = {id(v) for v in self.variables}
        kept = [w for w in self.weights if id(w) not in sharded]
        self.whole_weights = [(weight, weight.value) for weight in kept]
        self.values = [value for _, value in self.whole_weights]
        self.example = self.variables[0].value
        self.optimizer: Any = None
        _forget_whole_weights(model)

    def trained(self) -> list[torch.Tensor]:
        """Return the trained weights that are not sharded; none is allowed."""
        return self._only_trained(self.whole_weights)

    @contextlib.contextmanager
    def test_step(self) -> Iterator[None]:
        """Keep weights gathered inside, because regularizers read them."""
        self.testing = True
        try:
            yield
        finally:
            self.testing = False
            self.module.reshard()

    def evaluate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gather the weights for one call outside of training, and free them.

        Inside `test_step` or with gradients, the weights stay gathered.
        """
        try:
            return self.module(*args, **kwargs)
        finally:
            if not (self.testing or torch.is_grad_enabled()):
                self.module.reshard()

    def replicated(self) -> Any:
        """Return the training module, and shard the optimizer's slots first.

        Raises:
            RuntimeError: If weights are trained that are not sharded.
        """
        optimizer = self.model.optimizer
        if optimizer is not self.optimizer and optimizer.built:
            self._shard_slots(optimizer)
        if self.trained():
            raise RuntimeError(
                "A weight must be trainable when `data_parallel(model, "
                "fully_sharded=True)` is called if it is trained later. "
                f"Received: {self.model.name!r}, which has more trainable "
                "weights than then. Freeze weights after that call."
            )
        return self.training_module

    def _shard_slots(self, optimizer: keras.optimizers.Optimizer) -> None:
        for slot in slots_of(self.model, self.variables):
            value = _keras.stored_value_of(slot)
            if not isinstance(value, DTensor):
                _keras.put_value(slot, self._distributed(value))
        banks = sharded_banks(self.model)
        if banks:
            weights = [weight for bank in banks for weight in bank.weights]
            views = [*weights, *slots_of(self.model, weights)]
            optimizer.__dict__["apply"] = _ApplyToAll(
                optimizer, views, self.example.device_mesh
            )
        self.optimizer = optimizer

    def _distributed(self, tensor: torch.Tensor) -> Any:
        """Return a tensor as a parameter that holds a DTensor."""
        mesh, placements = self.example.device_mesh, self.example.placements
        parts = distribute_tensor(tensor.detach(), mesh, placements)
        return torch.nn.Parameter(parts, requires_grad=False)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Make weights and slots whole in every process inside.

        At the end, each process keeps its part of what was assigned to them.
        """
        everything = [*self.variables, *slots_of(self.model, self.variables)]
        parts = [v.value for v in everything]
        parts = [p if isinstance(p, DTensor) else None for p in parts]
        pairs = list(zip(everything, parts, strict=True))
        for variable, part in pairs:
            if part is not None:
                whole = torch.nn.Parameter(
                    part.detach().full_tensor(), requires_grad=False
                )
                _keras.put_value(variable, whole)
        try:
            yield
        finally:
            for variable, part in pairs:
                if part is not None:
                    found = self._distributed(variable.value)
                    part.detach().to_local().copy_(found.detach().to_local())
                    _keras.put_value(variable, part)


class _FollowedWeights(torch.nn.Module):
    """Wrap a function as a module, and assign its parameters to variables.

    Args:
        function: Function that the module calls.
        variables: List of Keras variables. Their values are the parameters.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        variables: Sequence[keras.Variable],
    ):
        super().__init__()
        self.function = function
        self.followers = {f"weight_{i}": v for i, v in enumerate(variables)}
        for name, variable in self.followers.items():
            self.register_parameter(name, variable.value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        follower = self.__dict__.get("followers", {}).get(name)
        if follower is not None:
            _keras.put_value(follower, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _ApplyToAll:
    """Run an optimizer's `apply` if experts are sharded by `shard_experts`.

    PyTorch's fused updates accept DTensors or tensors, but not both. Therefore
    a process's part of a bank becomes a part of a DTensor while they run.

    Args:
        optimizer: A built optimizer.
        variables: Weights of the banks and their optimizer slots.
        mesh: Device mesh of the DTensors.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        mesh: Any,
    ):
        self.own = type(optimizer).apply.__get__(optimizer)
        self.variables = variables
        self.mesh = mesh

    def __call__(self, grads: Any, trainable_variables: Any = None) -> Any:
        values = [v.value for v in self.variables]
        parts = {id(v): v.value for v in self.variables}
        grads = [
            self._as_part(grad) if id(v) in parts and grad is not None else grad
            for grad, v in zip(grads, trainable_variables, strict=True)
        ]
        for variable, value in zip(self.variables, values, strict=True):
            self._put(variable, self._as_part(value.detach()))
        try:
            return self.own(grads, trainable_variables)
        finally:
            for variable, value in zip(self.variables, values, strict=True):
                self._put(variable, value)

    def _put(self, variable: keras.Variable, value: torch.Tensor) -> None:
        """Give a variable another tensor, and the shape `assign` checks."""
        _keras.put_value(variable, value)
        _keras.put_shape(variable, value.shape)

    def _as_part(self, tensor: torch.Tensor) -> DTensor:
        return DTensor.from_local(tensor, self.mesh, [Shard(0)])


def _forget_whole_weights(model: keras.Model) -> None:
    """Make layers drop their references to the whole weights."""
    for layer in _keras.every_layer_of(model):
        _keras.note_weights_anew(layer)


def _check_ranks(
    model: keras.Model, variables: Sequence[keras.Variable]
) -> None:
    if not variables:
        raise ValueError(
            "`fully_sharded` must be False for a model without trainable "
            f"weights. Received: {model.name!r}, which has none besides "
            "sharded experts. Use `data_parallel(model)`."
        )
    for variable in variables:
        if not variable.shape:
            raise ValueError(
                "`fully_sharded` must be False if a weight is a scalar, "
                "because FSDP2 shards the first axis of each weight. Received: "
                f"{variable.path!r} of shape (). Give it the shape (1,)."
            )
