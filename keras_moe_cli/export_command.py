"""`keras-moe export`: from a `.keras` file to an artifact."""

import os
import pathlib

from keras_moe.cli.errors import CliError
from keras_moe.cli.files import load_model, one_reason, read_data
from keras_moe.export import export as export_model
from keras_moe.export.formats import format_of


def export(
    model: pathlib.Path,
    format: str,
    out: pathlib.Path,
    quantize: str | None = None,
    verify: bool = True,
    data: pathlib.Path | None = None,
) -> dict:
    """Exports; see `keras_moe.export.export`.

    Returns:
        The manifest, and under `path` where the artifact is.
    """
    format_of(format)
    _check_writable(out)
    inputs = read_data(data)
    loaded = load_model(model)
    try:
        manifest = export_model(
            loaded, out, format, None, verify, quantize, inputs
        )
    except OSError as error:
        raise _cannot_write(out, one_reason(error)) from error
    return {"path": str(out), **manifest}


def _check_writable(out):
    """Says at once what would be said after minutes of work."""
    place = pathlib.Path(out).absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        kind = "may not be written" if place.is_dir() else "is a file"
        raise _cannot_write(out, f"{place} {kind}")


def _cannot_write(out, reason):
    return CliError(
        f"`--out` must be a place that can be written. Received: {out}: "
        f"{reason}. Choose another place or make room."
    )
