"""Make a model train on several devices, on the running backend."""

import keras

from keras_moe import checks

ON_JAX = (
    "On JAX call keras.distribution.set_distribution(keras_moe.distribution."
    "expert_parallel()) before the model is built."
)


def data_parallel(
    model: keras.Model, fully_sharded: bool = False
) -> keras.Model:
    """Make a model train on the batches of all replicas together.

    On PyTorch, it trains with DDP or FSDP2 in the processes of torchrun or
    `keras-moe launch`; see `torch_parallel.data_parallel`. On TensorFlow, it
    trains under the strategy in whose scope it was made, with corrections of
    Keras's own training; see `tensorflow_workers.data_parallel`.

    Args:
        model: A `keras.Model`, which must be built on PyTorch.
        fully_sharded: Whether each process keeps only its part of the weights
            between steps, on PyTorch only. Default: `False`.

    Returns:
        The same model object.

    Raises:
        RuntimeError: If the backend is JAX, or if no processes were started on
            PyTorch.
        ValueError: If `model` is not a Keras model, is not built on PyTorch,
            or was not made in the scope of a strategy on TensorFlow; if a part
            of the model is fully sharded already; or if `fully_sharded` is
            `True` on TensorFlow.

    Example:

    ```python
    keras_moe.distribution.initialize()
    model = keras_moe.distribution.data_parallel(make_model())
    model.fit(x, y)  # on PyTorch, in each process of `keras-moe launch`
    ```
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
    """Keep only a part of each block's experts in each process, on PyTorch.

    `data_parallel(shard_experts(model))` trains like `data_parallel(model)`;
    see `torch_experts.shard_experts`.

    Args:
        model: A built model with blocks whose `experts` are an `Expert`.
        processes: Int, number of processes with consecutive ranks that hold
            all experts together. `None` (the default) is all processes.

    Returns:
        The same model object.

    Raises:
        RuntimeError: If the backend is not PyTorch, or if no processes were
            started.
        ValueError: If the model has no such block or is sharded already, if
            `processes` does not divide the number of processes, or if it does
            not divide the number of experts of a block.

    Example:

    ```python
    from keras_moe.distribution import data_parallel, shard_experts

    keras_moe.distribution.initialize()
    model = data_parallel(shard_experts(make_model()))
    ```
    """
    checks.check_model("model", model)
    checks.check_optional_int("processes", processes)
    _check_torch("shard_experts")
    from keras_moe.distribution import torch_experts

    return torch_experts.shard_experts(model, processes)


def gather_experts(model: keras.Model) -> keras.Model:
    """Give every process all experts again, on PyTorch.

    Every process must call this function.

    Args:
        model: Model that was passed to `shard_experts`. A model that is not
            sharded is returned unchanged.

    Returns:
        The same model object.

    Raises:
        RuntimeError: If the backend is not PyTorch.
        ValueError: If `model` is not a Keras model.

    Example:

    ```python
    model = keras_moe.distribution.gather_experts(model)
    ```
    """
    checks.check_model("model", model)
    _check_torch("gather_experts")
    from keras_moe.distribution import torch_experts

    return torch_experts.gather_experts(model)


def _check_torch(name: str) -> None:
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
