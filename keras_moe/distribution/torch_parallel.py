"""Data parallelism on PyTorch: DistributedDataParallel within `model.fit`.

Each process holds the model and trains on its own batches. The gradients are
averaged over the processes while they are computed.
"""

import gc
import inspect

import keras
import torch
from keras import ops
from torch import distributed

from keras_moe.distribution import torch_saving
from keras_moe.distribution.torch_group import join
from keras_moe.distribution.torch_shards import sharded_banks
from keras_moe.layers.calling import own_call


def data_parallel(model: keras.Model) -> keras.Model:
    """Makes a model train on the batches of all processes together.

    The model stays what it is: `compile`, `fit`, a loss of its own, saving
    and loading are untouched, and a saved file knows of no processes. From
    now on

    - all processes hold the weights of the first, rank 0;
    - a training step averages the gradients over the processes. Where their
      batches are equally large it is the step of all batches together;
    - weights that a training step moves by other means than gradients, such
      as a BatchNormalization's moving averages, are averaged as well. A
      block's statistics and its loss-free bias count all processes' tokens;
    - the logs of `fit` and the result of `evaluate` are those of all batches
      together, on every process, so that callbacks act alike. Within an
      evaluation the logs of a batch are the process's own;
    - seeds are rank 0's too: what is random is drawn alike on every process,
      on other data;
    - `save` and `save_weights` write on rank 0 and do nothing elsewhere.

    Every process must make as many training steps: one that ends early leaves
    the others waiting. Every trainable weight must take part in each step.

    Args:
        model: a built Keras model.

    Returns:
        The same model.

    Raises:
        RuntimeError: on another backend than PyTorch, and outside torchrun
            and `keras-moe launch`.
        ValueError: for a model that is not built.
    """
    join("data_parallel")
    _check_built(model)
    broadcast_weights(model)
    if not isinstance(model.__dict__.get("call"), ReplicatedCall):
        ReplicatedMetrics(model).install()
        torch_saving.install(model)
    model.__dict__["call"] = ReplicatedCall(model)
    return model


class ReplicatedCall:
    """A model's `call` that goes through DDP in training.

    DDP wants a module whose `forward` it can call and whose parameters it
    reduces: `_Forward` is that, around the model's own `call`, so that Keras
    sees nothing of it.
    """

    averages_gradients = True

    def __init__(self, model):
        self.model = model
        self.own = own_call(model)
        parameters = inspect.signature(self.own).parameters
        self.has_training = "training" in parameters
        # Inside a call a dtype policy may cast what a variable gives out.
        self.weights = _replicated_weights(model)
        self.values = [weight.value for weight in self.weights]
        self.reduced: list = []
        self.module = None

    def __call__(self, *args, **kwargs):
        if not self._is_training(args, kwargs):
            return self.own(*args, **kwargs)
        self._check_weights()
        state = [
            v
            for v in self.values
            if v.is_floating_point() and not v.requires_grad
        ]
        versions = [v._version for v in state]
        outputs = self._replicated()(*args, **kwargs)
        pairs = zip(state, versions, strict=True)
        average([v for v, version in pairs if v._version != version])
        return outputs

    def _is_training(self, args, kwargs):
        training = self.model.training
        if self.has_training:
            training = kwargs.get("training")
        tensors = keras.tree.flatten((args, kwargs))
        symbolic = any(getattr(t, "is_meta", False) for t in tensors)
        return bool(training) and torch.is_grad_enabled() and not symbolic

    def _replicated(self):
        """The module, made anew where other weights are trained now."""
        trained = [v for v in self.values if v.requires_grad]
        if not _same(trained, self.reduced):
            self.module = None
            gc.collect()  # its hooks sit on the weights as long as it lives
            self.module = torch.nn.parallel.DistributedDataParallel(
                _Forward(self.own, trained), init_sync=False
            )
            self.reduced = trained
        return self.module

    def _check_weights(self):
        if _same(_replicated_weights(self.model), self.weights):
            return
        raise RuntimeError(
            "`data_parallel(model)` must be called after the model has all "
            "its weights, and its experts are sharded or gathered. Received: "
            f"{self.model.name!r}, whose weights are others since. Call "
            "data_parallel(model) again."
        )


class _Forward(torch.nn.Module):
    """A function as a module that has parameters."""

    def __init__(self, function, parameters):
        super().__init__()
        self.function = function
        self.weights = torch.nn.ParameterList(parameters)

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class ReplicatedMetrics:
    """A model's metrics, of the batches of all processes.

    A Keras metric adds up: totals, counts, a confusion matrix. The states are
    summed over the processes and the results computed of the sums, so that
    also an AUC is exact; a state that declares another `aggregation` than a
    sum is averaged.
    """

    def __init__(self, model):
        self.model = model
        self.testing = False

    def install(self):
        """Takes the place of the model's methods."""
        self.own_result = self.model.get_metrics_result
        self.own_test_step = self.model.test_step
        self.model.__dict__["get_metrics_result"] = self.result
        self.model.__dict__["test_step"] = self.test_step

    def test_step(self, data):
        """One batch's logs are the process's own: no process waits."""
        self.testing = True
        try:
            return self.own_test_step(data)
        finally:
            self.testing = False

    def result(self) -> dict:
        """What `keras.Model.get_metrics_result` returns, of all processes."""
        variables = [v for m in self.model.metrics for v in m.variables]
        values = [ops.convert_to_tensor(v) for v in variables]
        if self.testing or not values or values[0].is_meta:
            return self.own_result()
        values = [value.detach().clone() for value in values]
        add_up(values)
        for variable, value in zip(variables, values, strict=True):
            if variable.aggregation != "sum":
                value /= distributed.get_world_size()
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return self.own_result()


def broadcast_weights(model) -> None:
    """Gives every process the replicated weights and the seeds of rank 0."""
    sharded = _sharded_weights(model)
    for variable in model.variables:
        if id(variable) not in sharded:
            distributed.broadcast(variable.value.data, src=0)


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


def _check_built(model):
    if model.built:
        return
    raise ValueError(
        "`model` must be built: its weights are made equal on all processes. "
        f"Received: {model.name!r}, not built. Call it on a batch, or "
        "`model.build(input_shape)`."
    )
