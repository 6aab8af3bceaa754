"""`keras-moe export`: write an artifact from a `.keras` file."""

import os
import pathlib
from collections.abc import Iterator

from keras_moe.export import export as export_model
from keras_moe.export.formats import format_of
from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.path_arguments import load_model, one_reason, read_data
from keras_moe_cli.result_tables import Part, Result, facts, size, verified_text


def export(
    model: pathlib.Path,
    format: str,
    out: pathlib.Path,
    quantize: str | None = None,
    verify: bool = True,
    data: pathlib.Path | None = None,
) -> Result:
    """Export a model. See `keras_moe.export.export`.

    Args:
        model: A `.keras` file.
        format: Name of the artifact's format.
        out: The artifact's folder.
        quantize: `"int8"` or `"int4"` quantizes the weights. `None` (the
            default) does not.
        verify: Whether to run the artifact and compare it with the model.
            Default: `True`.
        data: A `.npz` file of inputs to verify on. `None` (the default) draws
            them.

    Returns:
        The manifest, with the artifact's folder under `path`.

    Raises:
        CliError: If the artifact cannot be written to `out`.
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


def tables(result: Result) -> Iterator[Part]:
    """Yield the artifact's folder, its size, and how it was verified."""
    yield facts(
        ("artifact", result["path"]),
        ("format", result["format"]),
        ("quantized", result["quantize"] or "no"),
        ("size", size(result["bytes"])),
        ("verified", verified_text(result["verified"])),
    )


def _check_writable(out: pathlib.Path) -> None:
    """Raise at once if `out` cannot be written, not after the export."""
    place = pathlib.Path(out).absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        kind = "may not be written" if place.is_dir() else "is a file"
        raise _cannot_write(out, f"{place} {kind}")


def _cannot_write(out: pathlib.Path, reason: str) -> CliError:
    return CliError(
        f"`--out` must be a place that can be written. Received: {out}: "
        f"{reason}. Choose another place or make room."
    )
