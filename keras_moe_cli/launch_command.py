"""`keras-moe launch`: a script as several processes, here or elsewhere."""

import pathlib

from keras_moe.cli.errors import DONE, MISUSED, CliError
from keras_moe.distribution.jobs import job_text
from keras_moe.distribution.launching import launch
from keras_moe.distribution.ray_workers import launch_on_ray

ALONE = "127.0.0.1"
PLACES = ("local", "ray")
# What `launch` has and Ray decides by itself.
LOCAL = {
    "devices_per_process": None,
    "logs": None,
    "port": None,
    "hosts": (ALONE,),
    "host": 0,
    "module": False,
}


def run(
    script: pathlib.Path,
    arguments: list[str],
    options: dict,
    on: str = "local",
    print_for: str | None = None,
    nodes: int = 2,
) -> int:
    """Runs a script, or prints the job that would.

    Args:
        script: the Python file.
        arguments: of the script.
        options: of `keras_moe.distribution.launch`.
        on: `"local"` or `"ray"`.
        print_for: the cluster whose job is printed instead.
        nodes: hosts of that job.

    Returns:
        The exit code of the first process that failed, or 0.
    """
    if print_for and options["module"]:
        raise CliError(
            "-m must be left out with --print: the job runs a file. Received: "
            f"-m {script}. Pass the path of a script.",
            MISUSED,
        )
    if print_for:
        job = {k: options[k] for k in ("backend", "processes", "restarts")}
        print(job_text(print_for, script, *arguments, nodes=nodes, **job))
        return DONE
    if on == "local":
        started = str(script) if options["module"] else script
        return launch(started, *arguments, **options)
    shared = {k: v for k, v in options.items() if k not in LOCAL}
    for name, default in LOCAL.items():
        if options[name] != default:
            raise CliError(
                f"{_option(name)} must be left out with --on ray, which "
                f"decides it. Received: {options[name]}.",
                MISUSED,
            )
    launch_on_ray(script, *arguments, **shared)
    return DONE


def _option(name):
    return "-m" if name == "module" else f"--{name.split('_')[0]}"
