"""Escape text, so that a name cannot change a terminal's output around it."""

from typing import Any


def printable(value: Any) -> Any:
    """Escape unprintable characters in a text, or in all texts of a nest.

    Line feeds, a terminal's control sequences, and bytes of a file name that
    are not UTF-8 become `\\n`, `\\x1b`, and `\\udcff`.

    Args:
        value: A str, or a dict or list of them. Anything else is returned
            unchanged.
    """
    if isinstance(value, dict):
        return {printable(k): printable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(map(_escaped, value))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
