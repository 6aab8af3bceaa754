"""Start a script as several processes that train together.

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
from keras_moe.distribution.launch_arguments import (
    check_devices,
    check_hosts,
    check_module,
    check_port,
    check_script,
)
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
from keras_moe.distribution.variables import Job

LAST_LINES = 30
SECONDS_TO_JOIN = 120.0
ALONE = (
    "warning: process {} never called keras_moe.distribution.initialize(), so "
    "it runs alone, on all data that it reads, and does not train together "
    "with the others. Call it in the script's first line after the imports."
)


def launch(
    script: str | os.PathLike[str],
    *arguments: str,
    backend: str | None = None,
    processes: int = 2,
    restarts: int = 0,
    devices_per_process: int | None = None,
    logs: str | os.PathLike[str] | None = None,
    port: int | None = None,
    hosts: Sequence[str] = ("127.0.0.1",),
    host: int = 0,
    module: bool = False,
) -> int:
    """Run a script as processes of one job on this host, and wait for them.

    The script must call `keras_moe.distribution.initialize()` first. If it
    does not, its processes train alone, and a warning is printed. Process 0
    shares the output of the calling process. The output of the other processes
    goes to files; if a process fails, the end of its file is printed. The other
    processes, which might wait for it forever, are then stopped. Ctrl-C,
    SIGTERM, and, on Linux, kill -9 of the calling process stop them, too.

    The processes share the host: each uses its part of the CPU cores
    (`OMP_NUM_THREADS`, unless you have set it) and one GPU.

    Args:
        script: Path of the Python file to run, or the name of a module if
            `module` is `True`.
        *arguments: Arguments of the script.
        backend: `"jax"`, `"tensorflow"`, or `"torch"`. `None` (the default)
            uses `KERAS_BACKEND`. On JAX, one process can use all devices of a
            host, so start one process per host.
        processes: Int, number of processes on this host. Default: 2.
        restarts: Int, how often all processes are started again after a
            failure. The script must resume from what it saved; see
            `keras_moe.distribution.BackupAndResume`. The variable
            `KERAS_MOE_ATTEMPT` counts the attempts from 0. Default: 0.
        devices_per_process: Int, number of virtual devices per process, to try
            JAX on a CPU. `None` (the default) uses the real devices.
        logs: Folder for `process1.log`, `process2.log`, ... `None` (the
            default) uses a temporary folder.
        port: Int, the first port. `None` (the default) finds free ports, or
            is 29500 if there are several hosts.
        hosts: Addresses of all hosts, in the same order on every host. Each
            host must call this function with the same arguments except for
            `host`. Default: only this host.
        host: Int, index of this host in `hosts`. Default: 0.
        module: Whether `script` is the name of a module, to be run like
            `python -m`. Default: `False`.

    Returns:
        0, or the exit code of the first process that failed (128 plus the
        number of the signal if a signal ended it).

    Raises:
        ValueError: If an argument is not one of the values above, if
            `devices_per_process` is passed for a backend other than JAX, or if
            `restarts` is above 0 with several hosts.
        FileNotFoundError: If the script does not exist.

    Example:

    ```python
    code = keras_moe.distribution.launch(
        "train.py", "--epochs", "3", backend="jax", processes=2
    )
    ```
    """
    checks.check_count("restarts", restarts)
    if logs is not None:
        checks.check_path("logs", logs)
    checks.check_bool("module", module)
    started = ["-m", check_module(script)] if module else [check_script(script)]
    command = [*started, *map(str, arguments)]
    setup = Setup(
        check_backend(backend),
        checks.check_positive_int("processes", processes),
        check_port(port),
        check_hosts(hosts, host, restarts),
        host,
        check_devices(devices_per_process, backend),
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


def _attempt(
    command: list[str], setup: Setup, folder: pathlib.Path, attempt: int
) -> Failure | None:
    """Run all processes of this host once, on ports of their own."""
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
    """Check whether processes join their job, by a file that each creates.

    Args:
        folder: Folder of the files.
        indices: Indices of the processes.
    """

    def __init__(self, folder: pathlib.Path, indices: Sequence[int]):
        self.files = [folder.absolute() / f"joined{i}" for i in indices]
        self.indices = indices
        self.until = time.monotonic() + SECONDS_TO_JOIN
        self.done = len(indices) < 2
        for file in self.files:
            file.unlink(missing_ok=True)

    def check(self, codes: Sequence[int | None]) -> None:
        """Warn once of processes that end, or run long, without joining.

        Args:
            codes: Exit code of each process; `None` while it runs.
        """
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
def _folder(logs: str | os.PathLike[str] | None) -> Iterator[pathlib.Path]:
    if logs is None:
        with tempfile.TemporaryDirectory(prefix="keras-moe-") as folder:
            yield pathlib.Path(folder)
        return
    path = pathlib.Path(logs)
    path.mkdir(parents=True, exist_ok=True)
    yield path


def _log(folder: pathlib.Path, job: Job) -> pathlib.Path | None:
    """Return a process's log file; `None` for the first one of each host."""
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


def _say(text: str) -> None:
    print(f"keras-moe: {text}", file=sys.stderr, flush=True)
