"""Data parallelism on PyTorch: DistributedDataParallel within `model.fit`.

Each process holds the model and trains on its own batches. Gradients are
averaged over the processes while they are computed.
"""

from typing import Any

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
    """Make a model train on the batches of all processes together.

    Use the model as before: `compile`, `fit`, its own loss, saving, and loading
    are unchanged, and a saved file does not depend on the processes. After this
    call

    - all processes hold the weights of rank 0;
    - a training step averages the gradients over the processes. If their
      batches have the same size, it is the step of all batches together;
    - weights that change in a training step without gradients, such as the
      moving averages of a BatchNormalization, are averaged, too. The
      statistics of a block and its loss-free bias count the tokens of all
      processes;
    - the logs of `fit` and the result of `evaluate` are those of all batches
      together in every process, so that callbacks do the same in each. During
      an evaluation, the logs of a batch are those of the process;
    - all processes have the seeds of rank 0, so they draw the same random
      numbers for different data;
    - a model inside this model that is fitted by itself, like the members in
      `Ensemble.fit_members`, trains on the batches of all processes, too;
    - `save` and `save_weights` write in rank 0 and do nothing in other ranks.

    Every process must make the same number of training steps. If not, `fit`
    raises an error with the counts in all of them. Every trainable weight must
    be used in each step.

    Args:
        model: A built `keras.Model`.
        fully_sharded: Whether each process keeps only its part of the weights
            and the optimizer slots between steps (FSDP2). All processes then
            take part in evaluation, too, and saving and loading must be called
            in each. Default: `False`.

    Returns:
        The same model object.

    Raises:
        RuntimeError: If the process was not started by torchrun or
            `keras-moe launch`.
        ValueError: If the model is not built, if a part of it is fully sharded
            already, or if `fully_sharded` is `True` for a part of a
            data-parallel model or for a model without trainable weights or
            with a scalar one.

    Reference: "PyTorch FSDP" (Zhao et al. 2023) for `fully_sharded`.
    """
    join("data_parallel")
    _check_built(model)
    _check_not_parted(model, fully_sharded)
    broadcast_weights(model)
    if fully_sharded:
        torch_optimizers.build_copies(model)
    _replicate(model, FullyShardedCall if fully_sharded else ReplicatedCall)
    return model


def _replicate(model: keras.Model, kind: type[ReplicatedCall]) -> None:
    """Replace the `call` of a model, and the methods that depend on it."""
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
    """Run the training step of a model inside one that all processes train.

    Without this step, each process would train its copy on its own batches,
    and the copies would diverge. The first step makes the part replicated, too.

    Args:
        part: Model inside `whole`.
        whole: Model that was passed to `data_parallel`.
    """

    def __init__(self, part: keras.Model, whole: keras.Model):
        self.part, self.whole = part, whole

    def __call__(self, data: Any) -> Any:
        """Train the part on the batches of all processes."""
        part, whole = self.part, self.whole
        if _holds_parts_of(whole.__dict__["call"], part):
            raise RuntimeError(
                f"{part.name!r} must be trained before data_parallel("
                f"{whole.name}, fully_sharded=True), because only a call of "
                f"{whole.name!r} gathers its weights. Received: `fit` of the "
                "part by itself. Train it before, or without `fully_sharded`."
            )
        copies = whole.__dict__.get("expert_copies")
        if copies is not None:
            part.__dict__["expert_copies"] = copies
        _replicate(part, ReplicatedCall)
        return part.train_step(data)


def _holds_parts_of(call: ReplicatedCall, model: keras.Model) -> bool:
    """Return whether a fully sharded call gathers weights of the model."""
    gathered = {id(v) for v in getattr(call, "variables", ())}
    return any(id(weight) in gathered for weight in model.weights)


def _parts_of(model: keras.Model) -> list[keras.Model]:
    layers = _keras.layers_inside(model)
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def _is_replicated(model: keras.Model) -> bool:
    return isinstance(model.__dict__.get("call"), ReplicatedCall)


def _check_not_parted(model: keras.Model, fully_sharded: bool) -> None:
    for part in (model, *_parts_of(model)):
        if getattr(part.__dict__.get("call"), "fully_sharded", False):
            raise ValueError(
                "`model` must not be fully sharded already. Received: "
                f"{part.name!r}, of which this process holds a part. Save the "
                "model and load it again to get whole weights."
            )
    step = model.__dict__.get("train_step")
    if fully_sharded and isinstance(step, _PartStep):
        raise ValueError(
            "`fully_sharded` must be False for a part of a model that is "
            f"data-parallel already. Received: {model.name!r}, a part of "
            f"{step.whole.name!r}. Leave `fully_sharded` out, or pass the "
            "whole model."
        )


def _check_built(model: keras.Model) -> None:
    if model.built:
        return
    raise ValueError(
        "`model` must be built, because its weights are sent to all processes. "
        f"Received: {model.name!r}, not built. Call it on a batch, or call "
        "`model.build(input_shape)`."
    )
