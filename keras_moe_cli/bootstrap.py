"""The door of the command `keras-moe`: what is settled before Keras is there.

It lies beside the package because importing anything of the package imports
Keras, which reads KERAS_BACKEND then and never again.
"""

import importlib.util
import json
import os
import sys
from typing import NoReturn

COMMAND = "keras_moe_cli"
# Who writes a format; TensorFlow where none is named.
WRITERS = {"torch": "torch"}
QUICKEST_TO_IMPORT = ("jax", "torch", "tensorflow")
PATIENT = ("tensorflow", "torch", "jax")


# What Keras imports with each of its backends.
IMPORTED = {
    "jax": ("jax",),
    "tensorflow": ("tensorflow",),
    "torch": ("torch",),
    "numpy": ("jax", "scipy"),
    "openvino": ("openvino", "scipy"),
}
FAILED, MISUSED = 1, 2


def main() -> None:
    """Run the command in `sys.argv` and exit with its code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        fail("stdout is closed. Redirect it to a file or to /dev/null.")
    check_extra()
    arguments = sys.argv[1:]
    if arguments[:1] == ["launch"]:
        arguments = launched(arguments)
        settings = {"KERAS_BACKEND": any_backend()}  # processes have their own
    else:
        settings = {**backend_for(arguments), **threads_for(arguments)}
    os.environ.update(settings)
    check_backend(os.environ["KERAS_BACKEND"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "launch" not in arguments[:1] and "--debug" not in arguments:
        silence()
    from keras_moe.cli import main as command

    sys.exit(flushed(command(arguments)))


def run_without_keras() -> None:
    """Start the command anew if it was called as `python -m keras_moe.cli`.

    Python imports the package before it runs a module of it. The package
    calls this first, so that the command can choose Keras's backend.
    """
    options = sys.orig_argv[1:]
    if "keras_moe.cli" not in options:
        return
    place = options.index("keras_moe.cli")
    before, after = options[:place], options[place + 1 :]
    os.execv(sys.executable, [sys.executable, *before, COMMAND, *after])


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Write one line to stderr and exit."""
    print(f"keras-moe: {message}", file=sys.stderr)
    sys.exit(code)


def check_extra() -> None:
    """Exit if a package of the extra `cli` is missing."""
    if package := missing_package():
        fail(needs(package))


def needs(package: str) -> str:
    """Return the line about a missing package of the extra `cli`."""
    return f'the command needs {package}. Run pip install "keras-moe[cli]".'


def missing_package() -> str | None:
    """Return the first package of the extra `cli` that is not installed."""
    packages = ("typer", "rich")
    return next((p for p in packages if not is_installed(p)), None)


def check_backend(backend: str) -> None:
    """Exit if Keras has no such backend, or if its package is missing."""
    if backend not in IMPORTED:
        fail(
            f"`KERAS_BACKEND` must be one of {', '.join(IMPORTED)}. Received: "
            f"KERAS_BACKEND={backend!r}. Unset it, or correct it.",
            MISUSED,
        )
    if missing := [p for p in IMPORTED[backend] if not is_installed(p)]:
        extra = backend if backend in PATIENT else "jax"
        fail(
            f"Keras's backend {backend} needs {' and '.join(missing)}. Run "
            f'pip install "keras-moe[{extra}]", or set KERAS_BACKEND to an '
            "installed backend."
        )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def any_backend() -> str:
    """Return the installed backend that starts the least."""
    for backend in ("numpy", *QUICKEST_TO_IMPORT):
        if all(map(is_installed, IMPORTED[backend])):
            return backend
    return fail(
        "the command needs a backend of Keras, and none is installed. Run "
        'pip install "keras-moe[jax]", or [tensorflow], or [torch].'
    )


def flushed(code: int) -> int:
    """Write what stdout still holds; return the exit code."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if not code:
            print(f"keras-moe: stdout: {error.strerror}.", file=sys.stderr)
        # Or Python tries again when it ends, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or FAILED
    return code


def backend_for(arguments: list[str]) -> dict[str, str]:
    """The backend that the command wants, where the user has said nothing."""
    if os.environ.get("KERAS_BACKEND"):
        return {}
    command = next((a for a in arguments if not a.startswith("-")), "")
    wanted: tuple[str, ...]
    if command == "export":
        writer = WRITERS.get(value_of("--format", arguments), "tensorflow")
        wanted = (writer, *PATIENT)
    elif not any(a.endswith(".keras") for a in arguments):
        wanted = ()  # artifacts run without Keras
    elif command == "inspect":
        wanted = QUICKEST_TO_IMPORT
    else:
        wanted = (configured(), *PATIENT)
    present = (b for b in wanted if is_installed(b))
    return {"KERAS_BACKEND": next(present, None) or any_backend()}


def launched(arguments: list[str]) -> list[str]:
    """Names the processes' backend, where the user has not, to `launch`.

    What stands behind the script is the script's.
    """
    scripts = (i for i, a in enumerate(arguments) if a.endswith(".py"))
    end = next(scripts, len(arguments))
    if value_of("--backend", arguments[:end]):
        return arguments
    backend = os.environ.get("KERAS_BACKEND") or configured()
    return [arguments[0], f"--backend={backend}", *arguments[1:]]


def configured() -> str:
    """The backend that Keras's own file of settings names."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    try:
        with open(os.path.join(home, "keras.json")) as file:
            return str(json.load(file)["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def threads_for(arguments: list[str]) -> dict[str, str]:
    """What each backend reads the number of its threads from, at its start."""
    threads = value_of("--threads", arguments)
    names = "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "NPROC"
    if not threads.isdigit() or os.environ.get(names[0]) == threads:
        return {}
    return dict.fromkeys(names, threads)


def value_of(option: str, arguments: list[str]) -> str:
    """What follows an option, after a space or `=`; `""` where it is not."""
    for i, argument in enumerate(arguments):
        if argument == option:
            return "".join(arguments[i + 1 : i + 2])
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return ""


def silence() -> None:
    """Sends what backends write past Python nowhere; Python's is kept."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        stream.flush()
        kept = os.dup(number)
        os.dup2(nowhere, number)
        options = {"encoding": stream.encoding, "errors": stream.errors}
        setattr(sys, name, open(kept, "w", buffering=1, **options))


if __name__ == "__main__":
    main()
