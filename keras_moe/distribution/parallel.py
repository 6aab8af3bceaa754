"""What a model needs to train on several devices, on the running backend."""

import keras

from keras_moe import checks

ON_JAX = (
    "On JAX call keras.distribution.set_distribution(keras_moe.distribution."
    "expert_parallel()) before the model is built."
)


def data_parallel(
    model: keras.Model, fully_sharded: bool = False
) -> keras.Model:
    """Makes a model train on the batches of all replicas together.

    On PyTorch by DDP or FSDP2 between the processes of torchrun; see
    `torch_parallel.data_parallel`. On TensorFlow under the strategy in whose
    scope the model was made, with what Keras lacks there; see
    `tensorflow_workers.data_parallel`. The model stays the same object.

    Args:
        model: a Keras model.
        fully_sharded: PyTorch alone: whether each process keeps only its part
            of the weights between steps.

    Returns:
        The same model.

    Raises:
        RuntimeError: on a backend where it means nothing, and on PyTorch
            where no processes were started.
        ValueError: for a model that does not suit.
    """
    checks.check_model("model", model)
    checks.check_bool("fully_sharded", fully_sharded)
    backend = keras.backend.backend()
    if backend == "torch":
        from keras_moe.distribution import torch_parallel

        return torch_parallel.data_parallel(model, fully_sharded)
    if backend == "tensorflow":
        from keras_moe.distribution import tensorflow_workers

        if fully_sharded:
            raise ValueError(
                "`fully_sharded` must be False on TensorFlow: its strategies "
                "hold whole weights on each replica. Received: "
                "fully_sharded=True. Use PyTorch, or JAX with "
                "keras_moe.distribution.expert_parallel()."
            )
        return tensorflow_workers.data_parallel(model)
    raise RuntimeError(
        "`data_parallel` must run on PyTorch or TensorFlow. Received: "
        f"KERAS_BACKEND={backend}. {ON_JAX}"
    )


def shard_experts(
    model: keras.Model, processes: int | None = None
) -> keras.Model:
    """Leaves each process of PyTorch its part of every block's experts.

    `data_parallel(shard_experts(model))` trains as `data_parallel(model)`
    does; see `torch_experts.shard_experts`.

    Args:
        model: a built model with blocks whose `experts` are an `Expert`.
        processes: how many hold the experts together, those with consecutive
            ranks; None is all.

    Returns:
        The same model.

    Raises:
        RuntimeError: on another backend, and where no processes were started.
        ValueError: for a model, or a number of processes, that does not suit.
    """
    checks.check_model("model", model)
    checks.check_optional_int("processes", processes)
    _check_torch("shard_experts")
    from keras_moe.distribution import torch_experts

    return torch_experts.shard_experts(model, processes)


def gather_experts(model: keras.Model) -> keras.Model:
    """Gives every process of PyTorch all experts again.

    Args:
        model: of `shard_experts`. Every process must call it.

    Returns:
        The same model.

    Raises:
        RuntimeError: on another backend.
        ValueError: for a model that is not sharded.
    """
    checks.check_model("model", model)
    _check_torch("gather_experts")
    from keras_moe.distribution import torch_experts

    return torch_experts.gather_experts(model)


def _check_torch(name):
    backend = keras.backend.backend()
    if backend == "torch":
        return
    remedy = ON_JAX
    if backend == "tensorflow":
        remedy = (
            "On TensorFlow every replica holds all experts: make the model in "
            "the scope of a tf.distribute strategy and call data_parallel."
        )
    raise RuntimeError(
        f"`{name}` must run on PyTorch. Received: KERAS_BACKEND={backend}. "
        f"{remedy}"
    )
