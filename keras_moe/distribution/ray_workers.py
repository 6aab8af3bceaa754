"""Start the processes of a job as workers of Ray Train, on a Ray cluster.

Ray places the workers, assigns each a GPU, and starts all of them again if one
is lost. The workers join their job by `initialize()`, as under `keras-moe
launch`. Ray's own setup of TensorFlow is not used, because it would switch
Keras to version 2.
"""

import importlib.util
import os
import pathlib
import runpy
import socket
import sys
from collections.abc import Callable
from typing import Any

from keras_moe import checks
from keras_moe.distribution.starting import check_backend
from keras_moe.distribution.variables import Job, write_job


def launch_on_ray(
    work: str | os.PathLike[str] | Callable[..., Any],
    *arguments: Any,
    backend: str | None = None,
    processes: int = 2,
    restarts: int = 0,
    use_gpu: bool = False,
    storage: str | None = None,
) -> Any:
    """Run a script or a function on workers of Ray Train, and wait for them.

    If there is no cluster (`ray.init` or `RAY_ADDRESS`), Ray starts one on
    this host. A script must have the same path on every host.

    Args:
        work: Path of a Python file, or a function that imports what it needs.
            It must call `keras_moe.distribution.initialize()` first, and may
            call `ray.train.report`.
        *arguments: Arguments of the script or the function.
        backend: `"jax"`, `"tensorflow"`, or `"torch"`. `None` (the default)
            uses `KERAS_BACKEND`.
        processes: Int, number of workers. Default: 2.
        restarts: Int, how often all workers are started again after a failure.
            Default: 0.
        use_gpu: Whether each worker has one GPU. Default: `False`.
        storage: Folder or bucket for what is reported, which all hosts must be
            able to access. `None` (the default) uses Ray's default.

    Returns:
        A `ray.train.Result`.

    Raises:
        ImportError: If Ray is not installed.
        FileNotFoundError: If `work` is a path of no file.
        ValueError: If an argument is not one of the values above.
        ray.train.TrainingFailedError: If workers fail more than `restarts`
            times.

    Example:

    ```python
    result = keras_moe.distribution.launch_on_ray(
        "train.py", "--epochs", "3", backend="torch", processes=2
    )
    ```
    """
    _check_ray()
    backend = check_backend(backend)
    checks.check_positive_int("processes", processes)
    checks.check_count("restarts", restarts)
    checks.check_bool("use_gpu", use_gpu)
    worker = _worker(work, arguments)
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    _share_by_value(ray.cloudpickle)
    variables = {"env_vars": {"KERAS_BACKEND": backend}}
    if not ray.is_initialized():
        # A cluster that is started for this run needs no dashboard.
        own: dict[str, Any] = {"include_dashboard": False}
        there = "RAY_ADDRESS" in os.environ
        ray.init(runtime_env=variables, **({} if there else own))
    settings: dict[str, Any] = {
        "storage_path": storage,
        "failure_config": train.FailureConfig(max_failures=restarts),
        "worker_runtime_env": variables,
    }
    return DataParallelTrainer(
        worker,
        backend_config=_settings(backend),
        scaling_config=train.ScalingConfig(
            num_workers=processes, use_gpu=use_gpu
        ),
        run_config=train.RunConfig(**settings),
    ).fit()


def _worker(
    work: str | os.PathLike[str] | Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Callable[[], Any]:
    """Return the function without arguments that Ray calls on each worker."""
    if callable(work):
        return lambda: work(*arguments)
    path = pathlib.Path(work).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"`work` must be a function or a Python file. Received: {path}, "
            "which is not a file. Pass the path of one."
        )

    def run() -> None:
        sys.argv = [str(path), *map(str, arguments)]
        sys.path.insert(0, str(path.parent))
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(
                    f"{path.name} ended with exit code {end.code}."
                ) from end

    return run


def _settings(backend: str) -> Any:
    """Return the Ray config that sets each worker's variables at its start."""
    from ray.train.backend import Backend, BackendConfig

    class Settings(Backend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            addresses = tuple(worker_group.execute(_address))
            hosts = [address.rsplit(":", 1)[0] for address in addresses]
            for index, host in enumerate(hosts):
                local = hosts[:index].count(host)
                job = Job(index, len(hosts), local, addresses)
                worker_group.execute_single(
                    index, _set_variables, write_job(job, backend)
                )

    class SettingsConfig(BackendConfig):
        backend_cls = Settings

    return SettingsConfig()


def _address() -> str:
    """Return this worker's address, with a port that is free now."""
    import ray

    util: Any = ray.util  # without annotations
    host = util.get_node_ip_address()
    with socket.socket() as one:
        one.bind(("", 0))
        return f"{host}:{one.getsockname()[1]}"


def _set_variables(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def _share_by_value(cloudpickle: Any) -> None:
    """Pickle the functions of this file by value.

    Therefore Ray's controller, which only passes them on, does not import
    Keras.
    """
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _check_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            "`launch_on_ray` needs Ray, which is not installed. Run: "
            'pip install "keras-moe[ray]"'
        )
