"""Joining the processes that train together.

The first line of a script, on every backend:

    import keras_moe

    keras_moe.distribution.initialize()

The same script runs alone, by `keras-moe launch`, by torchrun, under SLURM's
`srun`, on a TPU slice of GKE, or with a TF_CONFIG of one's own.
"""

import atexit
import os
import socket

import keras

from keras_moe.distribution.slurm import read_slurm_job
from keras_moe.distribution.variables import Job, read_job, write_job


def initialize() -> bool:
    """Joins the job that this process was started for.

    It reads what the backend's own launchers write, and SLURM's variables on
    every backend:

    - JAX: `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `_NUM_PROCESSES`, `_PROCESS_ID`
      (or `TPU_WORKER_HOSTNAMES` of GKE) by `keras.distribution.initialize`;
    - PyTorch: torchrun's `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`,
      by `torch.distributed.init_process_group`, over gloo on a CPU and NCCL
      on GPUs, of which `LOCAL_RANK` takes one;
    - TensorFlow: `TF_CONFIG` is checked, and written under SLURM:
      `MultiWorkerMirroredStrategy` joins by it when it is made.

    Call it before anything is computed: before a layer, a tensor or
    `keras.distribution.list_devices()`. A second call does nothing. Leaving
    the job is seen to when Python ends.

    Returns:
        Whether this process is one of a job; False alone, where nothing was
        done.

    Raises:
        ValueError: where the variables do not make a job.
        RuntimeError: on JAX, where something was computed before.
    """
    backend = keras.backend.backend()
    job = read_job(os.environ, backend)
    if job is None and backend in JOIN:
        job = read_slurm_job(os.environ)
    if job is None or backend not in JOIN:
        return False
    JOIN[backend](job)
    if job.processes > 1:
        from keras_moe.distribution import even_batches

        even_batches.install()
        if backend != "tensorflow":  # whose strategy joins later
            even_batches.connect()
    return True


def process_index() -> int:
    """Returns the number of this process in the job it joined; 0 alone."""
    return _place()[0]


def process_count() -> int:
    """Returns how many processes the joined job has; 1 alone."""
    return _place()[1]


def _place():
    """(index, count), from the backend itself where it has joined.

    Not from the variables: JAX and PyTorch can be joined without, and a job
    that is not joined has no processes to share work with.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
    elif backend == "jax":
        import jax

        if jax.distributed.is_initialized():
            return jax.process_index(), jax.process_count()
    elif backend == "tensorflow":
        job = read_job(os.environ, backend)
        if job is not None:
            return job.index, job.processes
    return 0, 1


def _join_jax(job: Job) -> None:
    import jax

    if jax.distributed.is_initialized():
        return
    known = (*job.addresses[:1], job.processes, job.index)
    if job.addresses and job.index == 0:
        _check_free(job.addresses[0])
    try:
        # A TPU slice tells JAX the rest.
        keras.distribution.initialize(*known if job.addresses else ())
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise RuntimeError(
            "`initialize()` must come before anything is computed on JAX, "
            "which has made its devices already and cannot join other "
            "processes any more. Received: a call afterwards. Make it the "
            "first line after the imports: before a layer, a tensor or "
            "keras.distribution.list_devices()."
        ) from error


def _check_free(address: str) -> None:
    """JAX would wait on another program's port, and name none."""
    port = int(address.rsplit(":", 1)[1])
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
    except OSError as error:
        raise RuntimeError(
            "The first process of a job must have its port for itself. "
            f"Received: port {port} of {address!r}, {error.strerror}. Pass "
            "another one, `keras-moe launch --port`, or let it find one."
        ) from error


def _join_torch(job: Job) -> None:
    import torch

    if torch.distributed.is_initialized():
        return
    os.environ.update(write_job(job, "torch"))
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(job.local_index)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    )
    atexit.register(_leave_torch)


def _leave_torch():
    """Ends the group, which complains of one that nobody ended."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join_tensorflow(job: Job) -> None:
    """The strategy joins when it is made; it reads TF_CONFIG."""
    if "TF_CONFIG" not in os.environ:
        os.environ.update(write_job(job, "tensorflow"))


JOIN = {"jax": _join_jax, "tensorflow": _join_tensorflow, "torch": _join_torch}
