"""The door of the command `keras-moe`: what is settled before Keras is there.

It lies beside the package because importing anything of the package imports
Keras, which reads KERAS_BACKEND then and never again.
"""

import importlib.util
import json
import os
import sys

COMMAND = "keras_moe_cli"
# Who writes a format; TensorFlow where none is named.
WRITERS = {"torch": "torch"}
QUICKEST_TO_IMPORT = ("jax", "torch", "tensorflow")
PATIENT = ("tensorflow", "torch", "jax")


def main() -> None:
    """Runs the command that stands in `sys.argv` and exits with its code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["launch"]:
        arguments = launched(arguments)
        settings = {"KERAS_BACKEND": "numpy"}  # the processes have their own
    else:
        settings = {**backend_for(arguments), **threads_for(arguments)}
    if settings and "keras" in sys.modules:
        # `python -m keras_moe.cli` came here with Keras already imported.
        os.environ.update(settings)
        os.execv(sys.executable, [sys.executable, "-m", COMMAND, *arguments])
    os.environ.update(settings)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "launch" not in arguments[:1] and "--debug" not in arguments:
        silence()
    from keras_moe.cli import main as command

    code = command(arguments)
    sys.stdout.flush()
    sys.exit(code)


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
    present = (b for b in wanted if importlib.util.find_spec(b))
    return {"KERAS_BACKEND": next(present, "numpy")}


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
