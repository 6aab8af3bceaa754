"""Text as it is: a name must not change what a terminal shows around it."""

from typing import Any


def printable(value: Any) -> Any:
    """Escape what cannot be printed in a text, or in all texts of a nest.

    Line feeds, a terminal's control sequences, and bytes of a file's name that
    are no UTF-8 become `\\n`, `\\x1b`, and `\\udcff`.

    Args:
        value: A str, or a dict or list of them; others are returned unchanged.
    """
    if isinstance(value, dict):
        return {printable(k): printable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(v) for v in value]
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(map(_escaped, value))


def _escaped(character):
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
