"""Check that the content of a save's files can resume a training."""

from collections.abc import Callable
from typing import Any

from keras_moe.distribution.backup import generations, state
from keras_moe.files.content_checksum import CHECKSUM

Path = generations.Path
FIRST_SCHEMA = {
    "model",
    "optimizer",
    "weights",
    "variables",
    "backend",
    "processes",
    "epoch",
    "batch",
    "finished",
    "files",
}
SECOND_SCHEMA = FIRST_SCHEMA | {"schema", "layers", "steps", CHECKSUM}


def check(generation: Path, manifest: dict[str, Any]) -> None:
    """Raise if a training cannot be resumed from a generation.

    Raises:
        ValueError: If the manifest or a file is malformed. The message names
            it.
    """
    _check_manifest(manifest)
    shapes = state.shapes_of(generation / state.ARRAYS)
    if shapes != [shape for _, shape in manifest["variables"]]:
        raise ValueError(f"{state.ARRAYS} has other shapes than the manifest")
    for index in range(manifest["processes"]):
        name = state.own_name(index)
        own = state.unpack(generation / name)
        if own.records and own.records[-1][0] + 1 != manifest["epoch"]:
            raise ValueError(
                f"{name} ends with epoch {own.records[-1][0]}, and the "
                f"manifest with {manifest['epoch']}"
            )


def is_unchecked(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest has no checksum of its own content."""
    return "schema" not in manifest


def _check_manifest(manifest: dict[str, Any]) -> None:
    keys = FIRST_SCHEMA if is_unchecked(manifest) else SECOND_SCHEMA
    wrong = sorted(keys ^ manifest.keys())
    if not wrong:
        wrong = [key for key, fits in _fitting(manifest).items() if not fits]
    if wrong:
        raise ValueError(
            f"{generations.MANIFEST} is malformed: {', '.join(wrong)}"
        )


def _fitting(manifest: dict[str, Any]) -> dict[str, bool]:
    """Return, for each key, whether its value has the right type."""
    m = manifest
    own = {state.own_name(i) for i in range(_limit(m["processes"]))}
    fits = {
        "schema": m.get("schema", 2) == generations.SCHEMA,
        "model": isinstance(m["model"], str),
        "optimizer": m["optimizer"] is None or isinstance(m["optimizer"], str),
        "backend": isinstance(m["backend"], str),
        "variables": _is_list(m["variables"], _is_variable),
        "processes": _is_count(m["processes"], 1),
        "epoch": _is_count(m["epoch"]),
        "batch": _is_count(m["batch"]),
        "steps": m.get("steps") is None or _is_count(m["steps"], 1),
        "finished": m["finished"] is None or _is_count(m["finished"]),
        "layers": _is_list(m.get("layers", []), _is_layer),
        "files": m["files"].keys() == own | {state.ARRAYS},
    }
    weights = _is_count(m["weights"]) and fits["variables"]
    fits["weights"] = weights and m["weights"] <= len(m["variables"])
    return fits


def _limit(processes: Any) -> int:
    """Return a number of processes, or 0 if the value is not one."""
    return processes if _is_count(processes, 1) and processes < 1 << 20 else 0


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_list(value: Any, is_part: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_part, value))


def _is_variable(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return isinstance(value[0], str) and _is_list(value[1], _is_count)


def _is_layer(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    kind, config = value
    return isinstance(kind, str) and (config is None or type(config) is dict)
