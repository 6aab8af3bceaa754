"""Turn an exception into one line on stderr and an exit code."""

import re
import sys
import traceback

import typer

from keras_moe_cli.exit_codes import DONE, FAILED, INTERRUPTED, MISUSED
from keras_moe_cli.printable import printable

MAX_LENGTH = 600
# The errors of keras_moe, whose messages are written for the user.
EXPLAINED = (ValueError, TypeError, ImportError, OSError, RuntimeError)
_RAISED = re.compile(r"^[\w.]*(Error|Exception|Warning|Interrupt)\b")


class CliError(Exception):
    """Report an error whose message is printed unchanged.

    Args:
        message: The message.
        code: The exit code. Default: `FAILED`.
    """

    def __init__(self, message: str, code: int = FAILED):
        super().__init__(message)
        self.code = code


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run an app, print its error if there is one, and return the exit code."""
    command = typer.main.get_command(app)
    try:
        code: int | None = command.main(
            list(arguments), prog_name="keras-moe", standalone_mode=False
        )
        return code or DONE
    except SystemExit as error:
        if error.code != FAILED:  # a signal's
            raise
        # typer and rich exit with this code if a pipe is broken.
        print_error("stdout: Broken pipe.")
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the outermost handler
        if "--debug" in arguments:
            traceback.print_exc()
        message, exit_code = explain(error)
        print_error(message)
        return exit_code


def print_error(message: str) -> None:
    """Write a line to stderr."""
    print(f"keras-moe: {printable(message)}", file=sys.stderr)


def explain(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code for an exception."""
    if isinstance(error, CliError):
        return one_line(str(error)), error.code
    if hasattr(error, "format_message"):  # typer's or click's, by version
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "keras-moe"
        message = one_line(error.format_message())
        if not message.endswith((".", "?", ")")):
            message += "."
        return f"{message} See {name} --help.", MISUSED
    if isinstance(error, EXPLAINED):
        return one_line(_text_of(error)), FAILED
    message = f"{type(error).__name__}: {error}"
    return f"{one_line(message)} --debug shows the traceback.", FAILED


def _text_of(error: Exception) -> str:
    """Return the message of an error, without the number of an OSError."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    if error.filename is None:
        return f"{error.strerror}."
    return f"{error.filename}: {error.strerror}."


def one_line(text: str) -> str:
    """Join lines, and shorten a traceback to the exception at its end."""
    lines, inside = [], False
    for line in filter(None, map(str.rstrip, text.splitlines())):
        if line.startswith("Traceback "):
            inside = True
        elif inside and _RAISED.match(line):
            inside = False
            lines.append(line)
        elif not inside:
            lines.append(line.strip())
    joined = " ".join(lines)
    if len(joined) > MAX_LENGTH:
        joined = f"{joined[:MAX_LENGTH]} ... (--debug shows all)"
    return joined
