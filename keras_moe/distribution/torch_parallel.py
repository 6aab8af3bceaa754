"""Data parallelism on PyTorch: DistributedDataParallel within `model.fit`.

Each process holds the model and trains on its own batches. The gradients are
averaged over the processes while they are computed.
"""

import keras

from keras_moe.distribution import torch_saving
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
    - `save` and `save_weights` write on rank 0 and do nothing elsewhere.

    Every process must make as many training steps: one that ends early leaves
    the others waiting. Every trainable weight must take part in each step.

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
        ValueError: for a model that is not built.
    """
    join("data_parallel")
    _check_built(model)
    call = model.__dict__.get("call")
    _check_not_parted(model, call)
    broadcast_weights(model)
    if not isinstance(call, ReplicatedCall):
        ReplicatedMetrics(model).install()
        torch_saving.install(model)
    kind = FullyShardedCall if fully_sharded else ReplicatedCall
    model.__dict__["call"] = kind(model)
    return model


def _check_not_parted(model, call):
    if getattr(call, "fully_sharded", False):
        raise ValueError(
            "`model` must not be fully sharded already. Received: "
            f"{model.name!r}, of which this process holds a part. Save it "
            "and load it to start from the whole again."
        )


def _check_built(model):
    if model.built:
        return
    raise ValueError(
        "`model` must be built: its weights are made equal on all processes. "
        f"Received: {model.name!r}, not built. Call it on a batch, or "
        "`model.build(input_shape)`."
    )
