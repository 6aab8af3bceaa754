"""Read from the arguments what must be set before Keras is imported.

This file must not import Keras.
"""

import json
import os

from keras_moe_cli.exit_codes import fail
from keras_moe_cli.installed_packages import IMPORTED, is_installed

# The backend that writes a format. TensorFlow writes all other formats.
WRITERS = {"torch": "torch"}
# The options of `launch` that take no value. The next argument may be SCRIPT.
WITHOUT_VALUE = ("-m", "--", "--help")
FASTEST_TO_IMPORT = ("jax", "torch", "tensorflow")
# The order in which backends are tried if the import takes little of the time.
PREFERRED = ("tensorflow", "torch", "jax")


def backend_for(arguments: list[str]) -> dict[str, str]:
    """Return `KERAS_BACKEND` for a command; empty if the user has set it."""
    if os.environ.get("KERAS_BACKEND"):
        return {}
    command = next((a for a in arguments if not a.startswith("-")), "")
    wanted: tuple[str, ...]
    if command == "export":
        writer = WRITERS.get(value_of("--format", arguments), "tensorflow")
        wanted = (writer, *PREFERRED)
    elif not any(a.endswith(".keras") for a in arguments):
        wanted = ()  # artifacts run without Keras
    elif command == "inspect":
        wanted = FASTEST_TO_IMPORT
    else:
        wanted = (configured_backend(), *PREFERRED)
    present = (b for b in wanted if is_installed(b))
    return {"KERAS_BACKEND": next(present, None) or any_backend()}


def any_backend() -> str:
    """Return the installed backend that is the fastest to import, or exit."""
    for backend in ("numpy", *FASTEST_TO_IMPORT):
        if all(map(is_installed, IMPORTED[backend])):
            return backend
    return fail(
        "the command needs a backend of Keras, and none is installed. Run "
        'pip install "keras-moe[jax]", or [tensorflow], or [torch].'
    )


def configured_backend() -> str:
    """Return the backend in Keras's configuration file."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    try:
        with open(os.path.join(home, "keras.json")) as file:
            return str(json.load(file)["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def with_launch_backend(arguments: list[str]) -> list[str]:
    """Add `--backend` to the arguments of `launch` unless it is there.

    Arguments after the script are the script's.
    """
    end = 1
    while end < len(arguments) and arguments[end].startswith("-"):
        is_whole = arguments[end] in WITHOUT_VALUE or "=" in arguments[end]
        end += 1 if is_whole else 2
    if value_of("--backend", arguments[:end]):
        return arguments
    backend = os.environ.get("KERAS_BACKEND") or configured_backend()
    return [arguments[0], f"--backend={backend}", *arguments[1:]]


def threads_for(arguments: list[str]) -> dict[str, str]:
    """Return the variables that set the backends' number of threads.

    Backends read them once, when they start.
    """
    threads = value_of("--threads", arguments)
    names = "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC"
    if not threads.isdigit() or os.environ.get(names[0]) == threads:
        return {}
    return dict.fromkeys(names, threads)


def value_of(option: str, arguments: list[str]) -> str:
    """Return the value of an option, or `""` if it is not passed."""
    for i, argument in enumerate(arguments):
        if argument == option:
            return "".join(arguments[i + 1 : i + 2])
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return ""
