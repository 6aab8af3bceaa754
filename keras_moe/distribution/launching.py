"""Starting a script as several processes that train together.

keras-moe launch --backend jax --processes 2 train.py --epochs 3
"""

import contextlib
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from keras_moe import checks
from keras_moe.distribution.even_batches import JOINED
from keras_moe.distribution.local_processes import (
    Failure,
    ended_by_signals,
    run_together,
)
from keras_moe.distribution.starting import (
    Setup,
    check_backend,
    environment_of,
    jobs_of,
)

LAST_LINES = 30
SECONDS_TO_JOIN = 120.0
ALONE = (
    "warning: process {} never called keras_moe.distribution.initialize(), so "
    "that it works alone, on all data that it reads, and does not train "
    "together with the others. Call it in the script's first line after the "
    "imports."
)


def launch(
    script: str | os.PathLike,
    *arguments: str,
    backend: str | None = None,
    processes: int = 2,
    restarts: int = 0,
    devices_per_process: int | None = None,
    logs: str | os.PathLike | None = None,
    port: int | None = None,
    hosts: Sequence[str] = ("127.0.0.1",),
    host: int = 0,
    module: bool = False,
) -> int:
    """Runs a script as processes of one job on this host, and waits.

    The script calls `keras_moe.distribution.initialize()` first; a warning
    tells if it never does, since its processes then train alone. Process 0
    writes where this one writes. The others' output goes to files, and the
    end of that of a process that fails is shown. When one fails the others
    are stopped, which might wait for it forever. Ctrl-C, SIGTERM and, on
    Linux, kill -9 of this process stop them, too.

    The processes share the host: each gets its part of the CPU's cores
    (`OMP_NUM_THREADS`, where you have not set it) and one GPU.

    Args:
        script: the Python file to run; with `module`, a module's name.
        *arguments: of the script.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; None takes
            KERAS_BACKEND. On JAX one process can use all devices of a host:
            start as many as there are hosts, or 1 without this function.
        processes: how many on this host.
        restarts: how often all are started again after a failure. The script
            must then go on from what it saved, see
            `keras_moe.distribution.BackupAndResume`.
            `KERAS_MOE_ATTEMPT` counts from 0.
        devices_per_process: virtual devices of each process, for trials of
            JAX on a CPU.
        logs: the folder for `process1.log`, `process2.log` ...; None takes a
            temporary one.
        port: the first of the ports; None finds free ones, or is 29500 with
            several hosts.
        hosts: the addresses of all hosts, in the same order everywhere; each
            of them runs this function with the same arguments but `host`.
        host: which of `hosts` this one is.
        module: Whether `script` is run as `python -m` runs a module.

    Returns:
        0, or the exit code of the first process that failed (128 and the
        signal's number where a signal ended it).

    Raises:
        ValueError: where an argument breaks its rule.
        FileNotFoundError: where there is no such script.
    """
    checks.check_count("restarts", restarts)
    if logs is not None:
        checks.check_path("logs", logs)
    checks.check_bool("module", module)
    started = (
        ["-m", _check_module(script)] if module else [_check_script(script)]
    )
    command = [*started, *map(str, arguments)]
    setup = Setup(
        check_backend(backend),
        checks.check_positive_int("processes", processes),
        _check_port(port),
        _check_hosts(hosts, host, restarts),
        host,
        _check_devices(devices_per_process, backend),
    )
    with _folder(logs) as folder, ended_by_signals():
        for attempt in range(restarts + 1):
            failure = _attempt(command, setup, folder, attempt)
            if failure is None:
                return 0
            _tell(failure, setup, folder)
            if attempt < restarts:
                _say(f"starting all again, {attempt + 1} of {restarts}.")
    return failure.code  # type: ignore[union-attr]


def _attempt(command, setup, folder, attempt) -> Failure | None:
    """Starts all processes of this host once, on ports of their own."""
    jobs = jobs_of(setup)
    joining = Joining(folder, [job.index for job in jobs])
    environments = [
        environment_of(setup, job)
        | {"KERAS_MOE_ATTEMPT": str(attempt), JOINED: str(file)}
        for job, file in zip(jobs, joining.files, strict=True)
    ]
    logs = [_log(folder, job) for job in jobs]
    return run_together(command, environments, logs, joining.check)


class Joining:
    """Whether processes join their job, which each notes in a file.

    Args:
        folder: Of the files.
        indices: Of the processes.
    """

    def __init__(self, folder: pathlib.Path, indices: Sequence[int]):
        self.files = [folder.absolute() / f"joined{i}" for i in indices]
        self.indices = indices
        self.until = time.monotonic() + SECONDS_TO_JOIN
        self.done = len(indices) < 2
        for file in self.files:
            file.unlink(missing_ok=True)

    def check(self, codes: Sequence[int | None]) -> None:
        """Warn once if a process has ended, or runs long, without joining."""
        if self.done:
            return
        late = time.monotonic() > self.until
        alone = [
            index
            for index, file, code in zip(
                self.indices, self.files, codes, strict=True
            )
            if (late or code == 0) and not file.exists()
        ]
        if alone:
            _say(ALONE.format(", ".join(map(str, alone))))
        self.done = late or bool(alone)
        if None not in codes or self.done:
            for file in self.files:
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _folder(logs) -> Iterator[pathlib.Path]:
    if logs is None:
        with tempfile.TemporaryDirectory(prefix="keras-moe-") as folder:
            yield pathlib.Path(folder)
        return
    path = pathlib.Path(logs)
    path.mkdir(parents=True, exist_ok=True)
    yield path


def _log(folder, job):
    """Process 0 writes where the launcher writes; so does one a host."""
    if job.local_index == 0:
        return None
    return folder / f"process{job.index}.log"


def _tell(failure: Failure, setup: Setup, folder: pathlib.Path) -> None:
    index = setup.host * setup.processes + failure.index
    log = folder / f"process{index}.log"
    if failure.index and log.exists():
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[-LAST_LINES:]:
            print(f"[{index}] {line}", file=sys.stderr)
    _say(
        f"process {index} ended with exit code {failure.code}; the others "
        "were stopped."
    )


def _say(text):
    print(f"keras-moe: {text}", file=sys.stderr, flush=True)


def _check_script(script):
    path = checks.check_path("script", script)
    if path.is_file():
        return str(path)
    raise FileNotFoundError(
        f"`script` must be a Python file. Received: {str(script)!r}, which is "
        f"no file in {os.getcwd()}. Pass its path."
    )


def _check_module(name):
    if isinstance(name, str) and all(map(str.isidentifier, name.split("."))):
        return name
    raise ValueError(
        "`script` must be the name of a module with `module=True`, as "
        f"`python -m` takes it. Received: script={name!r}. Pass, for instance, "
        "'package.train'; or leave out `module` for a file."
    )


def _check_devices(devices, backend):
    if devices is None:
        return None
    if check_backend(backend) == "jax":
        return checks.check_positive_int("devices_per_process", devices)
    raise ValueError(
        "`devices_per_process` must be None but for JAX, which alone has "
        f"virtual devices. Received: devices_per_process={devices!r}, "
        f"backend={check_backend(backend)!r}. Raise `processes`."
    )


def _check_port(port):
    if port is None or 0 < checks.check_positive_int("port", port) < 65536:
        return port
    raise ValueError(
        f"`port` must be in 0 < port < 65536. Received: port={port!r}. Pass "
        "None for one that is free."
    )


def _check_hosts(hosts, host, restarts):
    hosts = tuple(checks.check_list("hosts", hosts, "addresses"))
    if isinstance(host, bool) or host not in list(range(len(hosts))):
        raise ValueError(
            "`host` must be the place of this host in `hosts`, from 0. "
            f"Received: host={host!r}, hosts={hosts!r}. Pass 0 on the first."
        )
    if restarts and len(hosts) > 1:
        raise ValueError(
            "`restarts` must be 0 with several hosts: all of them must start "
            f"again together. Received: restarts={restarts!r}, {len(hosts)} "
            "hosts. Let SLURM, Kubernetes or Ray start the job again."
        )
    return hosts
