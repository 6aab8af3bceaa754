"""Check the arguments of `launch`."""

import os
from collections.abc import Sequence
from typing import Any

from keras_moe import checks
from keras_moe.distribution.starting import check_backend


def check_script(script: str | os.PathLike[str]) -> str:
    """Return the path of a script as text if the file exists."""
    path = checks.check_path("script", script)
    if path.is_file():
        return str(path)
    raise FileNotFoundError(
        f"`script` must be a Python file. Received: {str(script)!r}, which is "
        f"not a file in {os.getcwd()}. Pass its path."
    )


def check_module(name: Any) -> str:
    """Return the name of a module if it is one."""
    if isinstance(name, str) and all(map(str.isidentifier, name.split("."))):
        return name
    raise ValueError(
        "`script` must be the name of a module if `module=True`, as for "
        f"`python -m`. Received: script={name!r}. Pass, for instance, "
        "'package.train'; or leave out `module` for a file."
    )


def check_devices(devices: int | None, backend: str | None) -> int | None:
    """Return a number of virtual devices, which only JAX has."""
    if devices is None:
        return None
    if check_backend(backend) == "jax":
        return checks.check_positive_int("devices_per_process", devices)
    raise ValueError(
        "`devices_per_process` must be None unless the backend is JAX, the "
        "only one with virtual devices. Received: "
        f"devices_per_process={devices!r}, backend={check_backend(backend)!r}. "
        "Increase `processes` instead."
    )


def check_port(port: int | None) -> int | None:
    """Return a port if it is `None` or in 1 ... 65535."""
    if port is None or 0 < checks.check_positive_int("port", port) < 65536:
        return port
    raise ValueError(
        f"`port` must be in 0 < port < 65536. Received: port={port!r}. Pass "
        "None to use a free port."
    )


def check_hosts(
    hosts: Sequence[str], host: int, restarts: int
) -> tuple[str, ...]:
    """Return the addresses of the hosts if `host` is one of them."""
    hosts = tuple(checks.check_list("hosts", hosts, "addresses"))
    if isinstance(host, bool) or host not in list(range(len(hosts))):
        raise ValueError(
            "`host` must be the index of this host in `hosts`, from 0. "
            f"Received: host={host!r}, hosts={hosts!r}. Pass 0 on the first "
            "host."
        )
    if restarts and len(hosts) > 1:
        raise ValueError(
            "`restarts` must be 0 with several hosts, because all of them must "
            f"start again together. Received: restarts={restarts!r}, "
            f"{len(hosts)} hosts. Let SLURM, Kubernetes, or Ray start the job "
            "again."
        )
    return hosts
