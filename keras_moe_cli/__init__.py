"""Floor 5: the command `keras-moe`.

`app.py` names the commands and their options; each command is one file that
turns paths into a dict (`exporting.py`, `inspecting.py`, `comparing.py`,
`benching.py`), which `report.py` prints. `keras_moe_cli.py`, beside the
package, chooses the backend first. Nothing of the package imports this.
"""

import sys

import keras_moe_cli

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        arguments: without the program's name; None takes `sys.argv`'s.

    Returns:
        The exit code: 0 done, 1 failed, 2 used wrongly.
    """
    if package := keras_moe_cli.missing_package():
        print(f"keras-moe: {keras_moe_cli.needs(package)}", file=sys.stderr)
        return 1
    from keras_moe.cli.app import app
    from keras_moe.cli.errors import run

    return run(app, sys.argv[1:] if arguments is None else arguments)
