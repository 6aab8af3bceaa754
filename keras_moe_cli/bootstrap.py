"""Set what Keras reads when it is imported, and start the command.

This file must not import Keras, nor a module that does, before `main` has set
`KERAS_BACKEND`.
"""

import os
import sys

from keras_moe_cli.exit_codes import FAILED, fail
from keras_moe_cli.installed_packages import check_backend, check_extra
from keras_moe_cli.startup_settings import (
    any_backend,
    backend_for,
    threads_for,
    with_launch_backend,
)


def main() -> None:
    """Run the command in `sys.argv` and exit with its code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        fail("stdout is closed. Redirect it to a file or to /dev/null.")
    check_extra()
    arguments = sys.argv[1:]
    if arguments[:1] == ["launch"]:
        arguments = with_launch_backend(arguments)
        # `launch` sets the backend of the processes that it starts.
        settings = {"KERAS_BACKEND": any_backend()}
    else:
        settings = {**backend_for(arguments), **threads_for(arguments)}
    os.environ.update(settings)
    check_backend(os.environ["KERAS_BACKEND"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "launch" not in arguments[:1] and "--debug" not in arguments:
        silence_native_output()
    sys.exit(flush_stdout(run_command(arguments)))


def run_command(arguments: list[str]) -> int:
    """Run one command line on the current backend of Keras.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0 if the command succeeded, 1 if it failed, 2 if its
        arguments are wrong, 130 if it was interrupted.
    """
    from keras_moe_cli.app import app
    from keras_moe_cli.cli_errors import run

    return run(app, arguments)


def flush_stdout(code: int) -> int:
    """Write the buffer of stdout, and return the exit code.

    Args:
        code: Exit code of the command. If it is 0 and stdout cannot be
            written, `FAILED` is returned.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        if not code:
            print(f"keras-moe: stdout: {error.strerror}.", file=sys.stderr)
        # Otherwise Python flushes again when it exits, with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or FAILED
    return code


def silence_native_output() -> None:
    """Discard the output of backends' native code, but not Python's."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        stream.flush()
        kept = os.dup(number)
        os.dup2(nowhere, number)
        options = {"encoding": stream.encoding, "errors": stream.errors}
        setattr(sys, name, open(kept, "w", buffering=1, **options))
