"""`keras-moe launch`: run a script as several processes, here or on Ray."""

import pathlib
from typing import Any

from keras_moe.distribution.jobs import job_text
from keras_moe.distribution.launching import launch
from keras_moe.distribution.ray_workers import launch_on_ray
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.exit_codes import DONE, MISUSED

LOCALHOST = "127.0.0.1"
PLACES = ("local", "ray")
# Options that Ray does not have, with their defaults.
LOCAL = {
    "devices_per_process": None,
    "logs": None,
    "port": None,
    "hosts": (LOCALHOST,),
    "host": 0,
    "module": False,
}


def run(
    script: pathlib.Path,
    arguments: list[str],
    options: dict[str, Any],
    on: str = "local",
    print_for: str | None = None,
    nodes: int = 2,
) -> int:
    """Run a script, or print the job that would run it.

    Args:
        script: The Python file.
        arguments: The script's own arguments.
        options: Arguments of `keras_moe.distribution.launch`.
        on: `"local"` (the default) or `"ray"`.
        print_for: The cluster to print a job for. `None` (the default) runs the
            script.
        nodes: Number of hosts of a printed job. Default: 2.

    Returns:
        The exit code of the first process that failed, or 0.

    Raises:
        CliError: If an option is passed that a printed job or Ray does not
            have.
    """
    if print_for and options["module"]:
        raise CliError(
            "-m must be left out with --print, because the job runs a file. "
            f"Received: -m {script}. Pass the path of a script.",
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
                f"{_option(name)} must be left out with --on ray. Received: "
                f"{options[name]}. Leave it out, or run with --on local.",
                MISUSED,
            )
    launch_on_ray(script, *arguments, **shared)
    return DONE


def _option(name: str) -> str:
    return "-m" if name == "module" else f"--{name.split('_')[0]}"
