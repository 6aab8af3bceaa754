"""What goes wrong, told in one line, and the exit code that says so."""

import re
import sys
import traceback

import typer

from keras_moe.cli.plain import printable

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130
LONGEST = 600
# What the package raises with a message for the reader.
TOLD = (ValueError, TypeError, ImportError, OSError, RuntimeError)
_RAISED = re.compile(r"^[\w.]*(Error|Exception|Warning|Interrupt)\b")


class CliError(Exception):
    """Something to tell the user as it stands."""

    def __init__(self, message: str, code: int = FAILED):
        super().__init__(message)
        self.code = code


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Runs an app; returns its exit code and tells what went wrong."""
    command = typer.main.get_command(app)
    try:
        code = command.main(
            list(arguments), prog_name="keras-moe", standalone_mode=False
        )
        return code or DONE
    except SystemExit as error:
        if error.code != FAILED:  # a signal's
            raise
        # How typer and rich end at a broken pipe.
        print("keras-moe: stdout: Broken pipe.", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last one to hear of it
        if "--debug" in arguments:
            traceback.print_exc()
        message, code = told(error)
        print(f"keras-moe: {printable(message)}", file=sys.stderr)
        return code


def told(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an exception."""
    if isinstance(error, CliError):
        return one_line(str(error)), error.code
    if hasattr(error, "format_message"):  # typer's, or click's, by version
        context = getattr(error, "ctx", None)
        name = context.command_path if context else "keras-moe"
        message = one_line(error.format_message())
        if not message.endswith((".", "?", ")")):
            message += "."
        return f"{message} See {name} --help.", MISUSED
    if isinstance(error, TOLD):
        return one_line(_text_of(error)), FAILED
    message = f"{type(error).__name__}: {error}"
    return f"{one_line(message)} --debug shows where.", FAILED


def _text_of(error):
    """An OSError's own words, without its number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    if error.filename is None:
        return f"{error.strerror}."
    return f"{error.filename}: {error.strerror}."


def one_line(text: str) -> str:
    """Joins lines; of a traceback only what was raised at its end is kept."""
    lines, last, inside = [], "", False
    for line in filter(None, map(str.rstrip, text.splitlines())):
        if line.startswith("Traceback "):
            inside = True
        elif inside and _RAISED.match(line):
            last, inside = line, False
            lines.append(last)
        elif not inside:
            lines.append(line.strip())
    joined = " ".join(lines)
    if len(joined) > LONGEST:
        joined = f"{joined[:LONGEST]} ... (--debug shows all)"
    return joined
