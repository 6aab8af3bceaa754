"""Join the processes that train together.

A script starts with these lines, on every backend:

    import keras_moe

    keras_moe.distribution.initialize()

The same script runs alone, and under `keras-moe launch`, torchrun, SLURM's
`srun`, a TPU slice of GKE, or a `TF_CONFIG` that you set yourself.
"""

import atexit
import os
import socket
from collections.abc import Callable

import keras

from keras_moe.distribution.slurm import read_slurm_job
from keras_moe.distribution.variables import Job, read_job, write_job


def initialize() -> bool:
    """Join the job that this process was started for.

    The job is read from the variables of the backend's own launchers, and from
    SLURM's variables on every backend:

    - JAX: `keras.distribution.initialize` joins by
      `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `_NUM_PROCESSES`, and `_PROCESS_ID`,
      or by `TPU_WORKER_HOSTNAMES` of GKE.
    - PyTorch: `torch.distributed.init_process_group` joins by torchrun's
      `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, and `MASTER_PORT`, with gloo on CPUs
      and NCCL on GPUs. A process uses the GPU number `LOCAL_RANK`.
    - TensorFlow: `TF_CONFIG` is checked, and written under SLURM. The process
      joins when it creates a `MultiWorkerMirroredStrategy`.

    Call this function before anything is computed: before you create a layer
    or a tensor or call `keras.distribution.list_devices()`. A second call does
    nothing. The process leaves the job when Python exits.

    Returns:
        Whether this process is part of a job. If not, nothing is changed.

    Raises:
        ValueError: If the variables of a job are incomplete or invalid.
        RuntimeError: If something was computed before on JAX, or if another
            program uses the port of the job.

    Example:

    ```python
    import keras_moe

    keras_moe.distribution.initialize()  # before anything is computed
    ```
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
        if backend != "tensorflow":  # its strategy joins later
            even_batches.connect()
    return True


def process_index() -> int:
    """Return the index of this process in its job; 0 without a job.

    Example:

    ```python
    if keras_moe.distribution.process_index() == 0:
        print("only the first process prints this")
    ```
    """
    return _place()[0]


def process_count() -> int:
    """Return the number of processes of the job; 1 without a job.

    Example:

    ```python
    batch_size = 256 // keras_moe.distribution.process_count()
    ```
    """
    return _place()[1]


def _place() -> tuple[int, int]:
    """Return the index of this process and the number of processes.

    They come from JAX and PyTorch themselves, because a process can join a job
    without the variables, or have the variables without having joined.
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
        # On a TPU slice, JAX finds the addresses by itself.
        keras.distribution.initialize(*known if job.addresses else ())
    except RuntimeError as error:
        if "must be called before" not in str(error):
            raise
        raise RuntimeError(
            "`initialize()` must be called before anything is computed on JAX, "
            "because JAX cannot join other processes after it has created its "
            "devices. Received: a later call. Make it the first line after the "
            "imports: before a layer, a tensor, or "
            "keras.distribution.list_devices()."
        ) from error


def _check_free(address: str) -> None:
    """Raise a RuntimeError if another program uses the port of the job.

    JAX itself would wait without naming the port.
    """
    port = int(address.rsplit(":", 1)[1])
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
    except OSError as error:
        raise RuntimeError(
            "The port of the first process of a job must be free. Received: "
            f"port {port} of {address!r}, {error.strerror}. Pass another port "
            "to `keras-moe launch --port`, or leave it out."
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


def _leave_torch() -> None:
    """End the process group, so that PyTorch does not warn at exit."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def _join_tensorflow(job: Job) -> None:
    """Write the `TF_CONFIG` by which the strategy joins when it is created."""
    if "TF_CONFIG" not in os.environ:
        os.environ.update(write_job(job, "tensorflow"))


JOIN: dict[str, Callable[[Job], None]] = {
    "jax": _join_jax,
    "tensorflow": _join_tensorflow,
    "torch": _join_torch,
}
