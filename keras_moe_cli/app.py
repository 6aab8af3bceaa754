"""Declare the five commands and their options."""

import pathlib
from collections.abc import Callable, Collection
from typing import Annotated

import typer

from keras_moe.distribution.jobs import CLUSTERS
from keras_moe.distribution.variables import BACKENDS
from keras_moe.export import FORMATS
from keras_moe.export.exporting import MODES
from keras_moe_cli import (
    bench_command,
    compare_command,
    export_command,
    inspect_command,
    launch_command,
)
from keras_moe_cli.cli_errors import print_error
from keras_moe_cli.exit_codes import DONE, FAILED
from keras_moe_cli.quiet import working
from keras_moe_cli.result_tables import show

Path = pathlib.Path
app = typer.Typer(
    help="Export, inspect, compare, time, and launch mixture-of-experts "
    "models.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _one_of(choices: Collection[str]) -> Callable[[str | None], str | None]:
    """Return a check that an option's value is one of `choices`."""

    def check(value: str | None) -> str | None:
        if value is None or value in choices:
            return value
        raise typer.BadParameter(
            f"{value!r} is not one of {', '.join(choices)}."
        )

    return check


Json = Annotated[
    bool, typer.Option("--json", help="Print JSON and nothing else.")
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", help="Show tracebacks and the output of libraries."
    ),
]
Modules = Annotated[
    list[str] | None,
    typer.Option(
        "--module",
        metavar="NAME",
        help="Module to import, which registers the model's custom classes.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(metavar="NPZ", help="Inputs by name. Default: random inputs."),
]
Either = Annotated[
    Path,
    typer.Argument(
        metavar="PATH", help="A .keras file or an artifact's folder."
    ),
]


@app.command()
def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A .keras file.")
    ],
    out: Annotated[Path, typer.Option(help="The artifact's folder.")],
    format: Annotated[
        str,
        typer.Option(callback=_one_of(FORMATS), help=f"{', '.join(FORMATS)}."),
    ] = "tf_saved_model",
    quantize: Annotated[
        str | None,
        typer.Option(callback=_one_of(MODES), help=f"{', '.join(MODES)}."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(help="Run the artifact and compare it with the model."),
    ] = True,
    data: Data = None,
    module: Modules = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Export a model as an artifact that runs without Keras, and verify it."""
    with working(debug, module):
        result = export_command.export(
            model, format, out, quantize, verify, data
        )
    show(result, as_json, export_command.tables)
    return DONE


@app.command()
def inspect(
    path: Either,
    module: Modules = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Describe what a model or an artifact contains."""
    with working(debug, module):
        result = inspect_command.inspect(path)
    show(result, as_json, inspect_command.tables)
    return DONE


@app.command()
def compare(
    a: Either,
    b: Either,
    data: Data = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest difference, in units of A's largest output, or of 1 "
            "if that is larger. Default: the larger tolerance of A and B.",
        ),
    ] = None,
    module: Modules = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare two models or artifacts, and exit with 1 if outputs differ."""
    with working(debug, module):
        result = compare_command.compare(a, b, data, tolerance)
    show(result, as_json, compare_command.tables)
    if result["agrees"]:
        return DONE
    print_error(
        f"A and B differ by more than {result['tolerance']:g}. They may be "
        "different models; --tolerance sets another limit."
    )
    return FAILED


@app.command()
def bench(
    path: Either,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Tokens per call. May be repeated. Default: 1 and 512.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that the runtime may use."),
    ] = None,
    module: Modules = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Time calls of a model or an artifact."""
    with working(debug, module):
        result = bench_command.bench(path, tokens or [1, 512], threads)
    show(result, as_json, bench_command.tables)
    return DONE


@app.command(context_settings={"allow_interspersed_args": False})
def launch(
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT", help="The Python file to run.")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENTS", help="The script's arguments."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            callback=_one_of(BACKENDS), help=f"{', '.join(BACKENDS)}."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes per host.")
    ] = 2,
    restarts: Annotated[
        int,
        typer.Option(
            min=0, help="How often to start all again after a failure."
        ),
    ] = 0,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, help="Virtual devices per process, for JAX on a CPU."
        ),
    ] = None,
    logs: Annotated[
        Path | None,
        typer.Option(help="Folder for the output of the other processes."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="The first port. Default: free ports."),
    ] = None,
    hosts: Annotated[
        str, typer.Option(metavar="A,B", help="Addresses of all hosts.")
    ] = launch_command.LOCALHOST,
    host: Annotated[
        int, typer.Option(help="Index of this host in --hosts, from 0.")
    ] = 0,
    on: Annotated[
        str,
        typer.Option(
            callback=_one_of(launch_command.PLACES),
            help="Where to run: local, ray.",
        ),
    ] = "local",
    print_for: Annotated[
        str | None,
        typer.Option(
            "--print",
            callback=_one_of(CLUSTERS),
            help=f"Print a job for {', '.join(CLUSTERS)} and run nothing.",
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Number of hosts of a printed job.")
    ] = 2,
    module: Annotated[
        bool,
        typer.Option("-m", help="SCRIPT is a module, as for `python -m`."),
    ] = False,
) -> int:
    """Run a script as several processes that train together."""
    options = {
        "backend": backend,
        "processes": processes,
        "restarts": restarts,
        "devices_per_process": devices,
        "logs": logs,
        "port": port,
        "hosts": tuple(hosts.split(",")),
        "host": host,
        "module": module,
    }
    return launch_command.run(
        script, arguments or [], options, on, print_for, nodes
    )
