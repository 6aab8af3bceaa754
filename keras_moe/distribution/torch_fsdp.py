"""Fully sharded data parallelism on PyTorch: FSDP2 within `model.fit`.

N processes. Between steps a process holds the N-th part of each weight and of
its optimizer's slots, as DTensors, and all of a weight during a step alone.
"""

import contextlib
from typing import Any

import torch
from torch.distributed import fsdp
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from keras_moe import _keras
from keras_moe.distribution.torch_replicas import ReplicatedCall
from keras_moe.distribution.torch_shards import sharded_banks, slots_of


class FullyShardedCall(ReplicatedCall):
    """A model's `call` that goes through FSDP2.

    `fully_shard` puts another parameter into its module whenever it gathers
    or frees the weights; `_FollowedWeights` passes it on to the Keras
    variables, so that layers, optimizer and model see what is there.
    """

    module: Any
    fully_sharded = True
    testing = False

    def __init__(self, model):
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
        self.optimizer = None
        _forget_whole_weights(model)

    def trained(self):
        """Returns what is trained without being sharded: nothing may be."""
        return self._only_trained(self.whole_weights)

    @contextlib.contextmanager
    def test_step(self):
        """Weights stay gathered: regularizers read them after the call."""
        self.testing = True
        try:
            yield
        finally:
            self.testing = False
            self.module.reshard()

    def evaluate(self, args, kwargs):
        """Gathers the weights for one call, and frees them."""
        try:
            return self.module(*args, **kwargs)
        finally:
            if not (self.testing or torch.is_grad_enabled()):
                self.module.reshard()

    def replicated(self):
        """The module; makes sure that the optimizer's slots are sharded."""
        optimizer = self.model.optimizer
        if optimizer is not self.optimizer and optimizer.built:
            self._shard_slots(optimizer)
        if self.trained():
            raise RuntimeError(
                "A weight must be trainable when `data_parallel(model, "
                "fully_sharded=True)` is called, to be trained later. "
                f"Received: {self.model.name!r}, of which more is trained "
                "since. Freeze weights after that call."
            )
        return self.training_module

    def _shard_slots(self, optimizer):
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

    def _distributed(self, tensor):
        mesh, placements = self.example.device_mesh, self.example.placements
        parts = distribute_tensor(tensor.detach(), mesh, placements)
        return torch.nn.Parameter(parts, requires_grad=False)

    @contextlib.contextmanager
    def whole(self):
        """Inside, every process holds all of each weight and slot; what is
        written to them is kept."""
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
    """A function as a module, whose parameters variables follow."""

    def __init__(self, function, variables):
        super().__init__()
        self.function = function
        self.followers = {f"weight_{i}": v for i, v in enumerate(variables)}
        for name, variable in self.followers.items():
            self.register_parameter(name, variable.value)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        follower = self.__dict__.get("followers", {}).get(name)
        if follower is not None:
            _keras.put_value(follower, value)

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class _ApplyToAll:
    """An optimizer's `apply`, where experts are sharded beside the rest.

    PyTorch's fused updates take DTensors or tensors, not both: what a process
    holds of a bank is seen as its part of a DTensor while they run.
    """

    def __init__(self, optimizer, variables, mesh):
        self.own = type(optimizer).apply.__get__(optimizer)
        self.variables = variables
        self.mesh = mesh

    def __call__(self, grads, trainable_variables=None):
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

    def _put(self, variable, value):
        """Gives a variable another tensor, and what `assign` checks."""
        _keras.put_value(variable, value)
        _keras.put_shape(variable, value.shape)

    def _as_part(self, tensor):
        return DTensor.from_local(tensor, self.mesh, [Shard(0)])


def _forget_whole_weights(model) -> None:
    """Lets go of the whole weights, which each layer has noted for PyTorch."""
    for layer in _keras.every_layer_of(model):
        _keras.note_weights_anew(layer)


def _check_ranks(model, variables):
    if not variables:
        raise ValueError(
            "`fully_sharded` must be False for a model that has no weights to "
            f"train. Received: {model.name!r}, without trainable weights "
            "beside sharded experts. Use `data_parallel(model)`."
        )
    for variable in variables:
        if not variable.shape:
            raise ValueError(
                "`fully_sharded` must be False where a weight is a scalar: "
                "FSDP2 shards the first axis of each. Received: "
                f"{variable.path!r} of shape (). Give it the shape (1,)."
            )
