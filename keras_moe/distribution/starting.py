"""Prepare the ports and variables of a job's processes on this host."""

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from keras_moe.distribution.variables import BACKENDS, Job, write_job

FIRST_PORT = 29500


@dataclass(frozen=True)
class Setup:
    """Hold the settings of a job that all attempts share.

    Attributes:
        backend: `"jax"`, `"tensorflow"`, or `"torch"`.
        processes: Number of processes on each host.
        port: The first port; `None` for free ports.
        hosts: Addresses of all hosts.
        host: Index of this host in `hosts`.
        devices: Number of virtual devices of a process on JAX; `None` for real
            devices.
    """

    backend: str
    processes: int
    port: int | None
    hosts: tuple[str, ...]
    host: int
    devices: int | None


def check_backend(backend: str | None) -> str:
    """Return a backend, or that of `KERAS_BACKEND` if it is `None`.

    Raises:
        ValueError: If there is no such backend.
    """
    chosen = backend
    if backend is None:
        chosen = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if isinstance(chosen, str) and chosen in BACKENDS:
        return chosen
    raise ValueError(
        f"`backend` must be one of {BACKENDS}. Received: backend={chosen!r}. "
        "Pass it, or set KERAS_BACKEND."
    )


def jobs_of(setup: Setup) -> list[Job]:
    """Return the jobs of this host's processes, on ports that are free now."""
    owners = [host for host in setup.hosts for _ in range(setup.processes)]
    addresses = tuple(
        f"{owner}:{port}"
        for owner, port in zip(owners, _ports(setup), strict=True)
    )
    first = setup.host * setup.processes
    return [
        Job(first + local, len(addresses), local, addresses)
        for local in range(setup.processes)
    ]


def environment_of(setup: Setup, job: Job) -> dict[str, str]:
    """Return all environment variables of a process."""
    environment = {
        "OMP_NUM_THREADS": str(max(1, _cores() // setup.processes)),
        "PYTHONUNBUFFERED": "1",
        **os.environ,
        **write_job(job, setup.backend),
        "KERAS_BACKEND": setup.backend,
    }
    if setup.processes > 1:
        environment.update(_own_gpu(setup.backend, job.local_index))
    if setup.devices:
        flags = environment.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={setup.devices}"
        environment["XLA_FLAGS"] = f"{flags} {count}".strip()
        environment.setdefault("JAX_PLATFORMS", "cpu")
    return environment


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _own_gpu(backend: str, local_index: int) -> dict[str, str]:
    """Return the variables that assign one GPU to a process.

    On PyTorch, `initialize` assigns it.
    """
    if backend == "jax":
        return {"JAX_LOCAL_DEVICE_IDS": str(local_index)}
    if backend == "tensorflow":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name for name in visible.split(",") if name]
        if local_index < len(names):
            return {"CUDA_VISIBLE_DEVICES": names[local_index]}
        return {} if names else {"CUDA_VISIBLE_DEVICES": str(local_index)}
    return {}


def _ports(setup: Setup) -> Sequence[int]:
    """Return one port per process; free ports if a single host sets none."""
    count = len(setup.hosts) * setup.processes
    if setup.port is None and len(setup.hosts) == 1:
        with contextlib.ExitStack() as stack:
            sockets = [
                stack.enter_context(socket.socket()) for _ in range(count)
            ]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]
    first = setup.port or FIRST_PORT
    return range(first, first + count)
