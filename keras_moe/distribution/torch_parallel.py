"""Data parallelism on PyTorch: DistributedDataParallel within `model.fit`.

Each process holds the model and trains on its own batches. The gradients are
averaged over the processes while they are computed.
"""

import keras

from keras_moe import _keras
from keras_moe.distribution import torch_optimizers, torch_saving
from keras_moe.distribution.torch_fsdp import FullyShardedCall
from keras_moe.distribution.torch_group import join
from keras_moe.distribution.torch_metrics import ReplicatedMetrics
from keras_moe.distribution.torch_replicas import (
    ReplicatedCall,
    broadcast_weights,
)


def data_parallel(
    model: keras.Model, fully_sharded: bool = False
) -> keras.Model:
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
    - a model inside it that is fitted by itself, as `Ensemble.fit_members` does
      with the members, trains on the batches of all processes as well;
    - `save` and `save_weights` write on rank 0 and do nothing elsewhere.

    Every process must make as many training steps; otherwise `fit` ends in all
    of them, with an error that names the counts. Every trainable weight must
    take part in each step.

    Args:
        model: a built Keras model.
        fully_sharded: whether each process keeps only its part of the weights
            and of the optimizer's slots between steps (FSDP2, after Zhao et
            al. 2023, "PyTorch FSDP"). Evaluation is then a step of all
            processes as well, and saving and loading must be called in each.

    Returns:
        The same model.

    Raises:
        RuntimeError: outside torchrun and `keras-moe launch`.
        ValueError: for a model that is not built, or of which a part is fully
            sharded already.
    """
    join("data_parallel")
    _check_built(model)
    _check_not_parted(model, fully_sharded)
    broadcast_weights(model)
    if fully_sharded:
        torch_optimizers.build_copies(model)
    _replicate(model, FullyShardedCall if fully_sharded else ReplicatedCall)
    return model


def _replicate(model, kind):
    """Puts the call of all processes, and what belongs to it, into a model."""
    if isinstance(model.__dict__.get("train_step"), _PartStep):
        del model.__dict__["train_step"]
    if not _is_replicated(model):
        ReplicatedMetrics(model).install()
        torch_saving.install(model)
    model.__dict__["call"] = kind(model)
    torch_optimizers.install(model, kind.fully_sharded)
    for part in _parts_of(model):
        torch_saving.install(part)
        if not _is_replicated(part):
            part.__dict__["train_step"] = _PartStep(part, model)


class _PartStep:
    """The training step of a model inside one that all processes train.

    By itself it would train each process's copy on its own batches, and the
    copies would diverge. At its first step it is made replicated, too.
    """

    def __init__(self, part, whole):
        self.part, self.whole = part, whole

    def __call__(self, data):
        """Trains the part on the batches of all processes."""
        part, whole = self.part, self.whole
        if _holds_parts_of(whole.__dict__["call"], part):
            raise RuntimeError(
                f"{part.name!r} must be trained before data_parallel("
                f"{whole.name}, fully_sharded=True), or without `fully_sharded`"
                f": it is a part of {whole.name!r}, whose call gathers its "
                "weights. Received: `fit` of the part alone."
            )
        copies = whole.__dict__.get("expert_copies")
        if copies is not None:
            part.__dict__["expert_copies"] = copies
        _replicate(part, ReplicatedCall)
        return part.train_step(data)


def _holds_parts_of(call, model):
    """Whether a fully sharded call gathers weights of the model."""
    gathered = {id(v) for v in getattr(call, "variables", ())}
    return any(id(weight) in gathered for weight in model.weights)


def _parts_of(model):
    layers = _keras.layers_inside(model)
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def _is_replicated(model):
    return isinstance(model.__dict__.get("call"), ReplicatedCall)


def _check_not_parted(model, fully_sharded):
    for part in (model, *_parts_of(model)):
        if getattr(part.__dict__.get("call"), "fully_sharded", False):
            raise ValueError(
                "`model` must not be fully sharded already. Received: "
                f"{part.name!r}, of which this process holds a part. Save it "
                "and load it to start from the whole again."
            )
    step = model.__dict__.get("train_step")
    if fully_sharded and isinstance(step, _PartStep):
        raise ValueError(
            "`fully_sharded` must be False for a part of a model that is "
            f"data-parallel already. Received: {model.name!r}, a part of "
            f"{step.whole.name!r}. Leave `fully_sharded` out, or pass the "
            "whole model."
        )


def _check_built(model):
    if model.built:
        return
    raise ValueError(
        "`model` must be built: its weights are made equal on all processes. "
        f"Received: {model.name!r}, not built. Call it on a batch, or "
        "`model.build(input_shape)`."
    )
