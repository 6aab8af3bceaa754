"""Starting the same processes as workers of Ray Train, on a Ray cluster.

Ray places the workers, gives each its GPU, and starts all again when one is
lost. What they share is the job that `initialize()` joins, as under
`keras-moe launch`; Ray's own set-up of TensorFlow is not used, which would
switch Keras to version 2.
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
    work: str | os.PathLike | Callable[..., Any],
    *arguments: Any,
    backend: str | None = None,
    processes: int = 2,
    restarts: int = 0,
    use_gpu: bool = False,
    storage: str | None = None,
) -> Any:
    """Runs a script or a function on workers of Ray Train, and waits.

    Without a cluster (`ray.init`, or RAY_ADDRESS) Ray starts one on this
    host. A script must lie at the same path on every host.

    Args:
        work: a Python file, or a function that imports what it needs. It
            calls `keras_moe.distribution.initialize()` first, and may call
            `ray.train.report`.
        *arguments: of the script or the function.
        backend: `"jax"`, `"tensorflow"` or `"torch"`; None takes
            KERAS_BACKEND.
        processes: how many workers.
        restarts: how often all are started again when one fails.
        use_gpu: one GPU a worker.
        storage: the folder or bucket for what is reported, which all hosts
            must see; None takes Ray's.

    Returns:
        Ray's `ray.train.Result`.

    Raises:
        ImportError: without Ray.
        ValueError: where an argument breaks its rule.
        ray.train.TrainingFailedError: where a worker failed once too often.
    """
    _check_ray()
    backend = check_backend(backend)
    checks.check_positive_int("processes", processes)
    checks.check_count("restarts", restarts)
    checks.check_bool("use_gpu", use_gpu)
    import ray
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    _share_by_value(ray.cloudpickle)
    variables = {"env_vars": {"KERAS_BACKEND": backend}}
    if not ray.is_initialized():
        # A cluster of this run's own needs no page to look at it.
        own: dict[str, Any] = {"include_dashboard": False}
        there = "RAY_ADDRESS" in os.environ
        ray.init(runtime_env=variables, **({} if there else own))
    settings: dict[str, Any] = {
        "storage_path": storage,
        "failure_config": train.FailureConfig(max_failures=restarts),
        "worker_runtime_env": variables,
    }
    return DataParallelTrainer(
        _worker(work, arguments),
        backend_config=_settings(backend),
        scaling_config=train.ScalingConfig(
            num_workers=processes, use_gpu=use_gpu
        ),
        run_config=train.RunConfig(**settings),
    ).fit()


def _worker(work, arguments):
    """The function of no arguments that Ray calls on each worker."""
    if callable(work):
        return lambda: work(*arguments)
    path = pathlib.Path(work).absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"`work` must be a function or a Python file. Received: {path}, "
            "which is no file. Pass its path."
        )

    def run():
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


def _settings(backend):
    """Ray's hook that runs before the workers do."""
    from ray.train.backend import Backend, BackendConfig

    class Settings(Backend):
        def on_start(self, worker_group, backend_config):
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


def _address():
    """This worker's, with a port that is free now."""
    import ray

    host = ray.util.get_node_ip_address()
    with socket.socket() as one:
        one.bind(("", 0))
        return f"{host}:{one.getsockname()[1]}"


def _set_variables(variables):
    os.environ.update(variables)


def _share_by_value(cloudpickle):
    """Sends this file's functions as code: Ray's controller, which only
    passes them on, then does not import Keras."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def _check_ray():
    if importlib.util.find_spec("ray") is None:
        raise ImportError(
            "Ray is not installed, which would place the workers. Run: "
            'pip install "keras-moe[ray]"'
        )
