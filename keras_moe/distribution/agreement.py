"""Let the processes of a job agree through their backend before training."""

import contextlib
import os
import socket
from typing import Any, NamedTuple

import keras

from keras_moe.distribution.environment import process_count, process_index
from keras_moe.distribution.slurm import read_slurm_job
from keras_moe.distribution.variables import read_job


class Place(NamedTuple):
    """Hold this process's place in its job.

    Attributes:
        number: Index of this process.
        processes: Number of processes.
        host: Address of process 0; empty if the job's variables do not have
            it.
    """

    number: int
    processes: int
    host: str


def place() -> Place:
    """Return the place of this process in the job that it joined."""
    job = read_job(os.environ, keras.backend.backend())
    job = job or read_slurm_job(os.environ)
    first = job.addresses[0] if job and job.addresses else ""
    host = first.rsplit(":", 1)[0]
    return Place(process_index(), process_count(), host)


def own_address() -> list[int]:
    """Return the four numbers of this host's IPv4 address in its network."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError), udp:
        udp.connect(("192.0.2.1", 9))  # selects a route, sends nothing
        return [int(n) for n in udp.getsockname()[0].split(".")]
    return [127, 0, 0, 1]


def is_collective(model: keras.Model, name: str) -> bool:
    """Return whether all processes take part in each step of a call.

    Args:
        model: Model whose method is called.
        name: `"fit"`, `"evaluate"`, or `"predict"`.
    """
    backend = keras.backend.backend()
    if process_count() == 1:
        return False
    if backend == "jax":
        return _spans_processes(keras.distribution.distribution())
    if backend == "tensorflow":
        from keras_moe.distribution.tensorflow_workers import (
            has_several_workers,
        )

        return has_several_workers(model.distribute_strategy)
    from keras_moe.distribution.torch_shards import sharded_banks

    call = model.__dict__.get("call")
    if name == "fit" and hasattr(call, "fully_sharded"):
        return True
    return getattr(call, "fully_sharded", False) or bool(sharded_banks(model))


def _spans_processes(distribution: Any) -> bool:
    import jax

    if distribution is None:
        return False
    devices: int = distribution.device_mesh.devices.size
    return devices > jax.local_device_count()


def is_between_steps(in_step: bool) -> bool:
    """Return whether metrics are read now outside of the model's steps.

    Args:
        in_step: Whether a step of the model is running.
    """
    if keras.backend.backend() == "torch":
        return not in_step
    import tensorflow as tf

    eager = tf.executing_eagerly()
    return bool(eager and tf.distribute.in_cross_replica_context())


def failures() -> tuple[type[Exception], ...]:
    """Return the errors that `from_first` raises if a process has ended."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return RuntimeError, tf.errors.OpError
    return (RuntimeError,)


def from_first(
    numbers: list[int], model: keras.Model | None = None
) -> list[int]:
    """Return the numbers that process 0 passes.

    All processes must call this function together.

    Args:
        numbers: List of integers below 2 ** 16 in process 0; zeros, as many,
            in the other processes.
        model: Model that all processes train, whose strategy TensorFlow needs.
            Default: `None`, for the other backends.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        sent = torch.tensor(numbers)
        if torch.distributed.get_backend() == "nccl":
            sent = sent.cuda()
        torch.distributed.broadcast(sent, src=0)
        return [int(n) for n in sent]
    if backend == "jax":
        import numpy as np
        from jax.experimental import multihost_utils

        own = np.array(numbers, "int32")
        return [int(n) for n in multihost_utils.broadcast_one_to_all(own)]
    strategy = model.distribute_strategy  # type: ignore[union-attr]
    return _from_first_worker(numbers, strategy)


def _from_first_worker(numbers: list[int], strategy: Any) -> list[int]:
    """Return the numbers of worker 0, by a sum over all replicas."""
    import tensorflow as tf

    own = strategy.num_replicas_in_sync // process_count()
    given = strategy.run(lambda: tf.constant(numbers, "int64"))
    total = strategy.reduce(tf.distribute.ReduceOp.SUM, given, axis=None)
    return [int(n) // own for n in total]
