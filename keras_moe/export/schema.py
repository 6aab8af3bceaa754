"""Define the schema of `moe.json` as a table of rules, and check it.

A rule is a function of a value and of the value's place in the manifest. If
the value breaks the rule, the function raises a ValueError that names the
place, the rule, and the value.
"""

import math
import reprlib
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

Rule: TypeAlias = Callable[[Any, str], None]
LARGEST = 2**40  # the number of elements of a shape
LONGEST = 2**31 - 1
MOST_AXES = 32
DTYPES = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "bfloat16", "float32", "float64"),
    *("complex64", "complex128", "bool", "string"),
)


def fail(where: str, rule: str, value: Any) -> NoReturn:
    """Raise a ValueError about the value at a place of the manifest.

    Args:
        where: The place, such as `inputs[0].shape`.
        rule: What the value must be.
        value: The value that breaks the rule.
    """
    received = reprlib.repr(value)
    raise ValueError(f"`{where}` must be {rule}. Received: {received}")


def integer(low: int, high: int = 2**63 - 1) -> Rule:
    """Accept an int in `low ... high`."""

    def check(value: Any, where: str) -> None:
        # A bool is an int.
        if type(value) is not int or not low <= value <= high:
            fail(where, f"an integer from {low} to {high}", value)

    return check


def number(low: float) -> Rule:
    """Accept a finite number that is at least `low`."""

    def check(value: Any, where: str) -> None:
        known = type(value) in (int, float) and abs(value) <= 1e300
        if not known or not value >= low:
            fail(where, f"a number from {low:g}", value)

    return check


def text(value: Any, where: str) -> None:
    """Accept text that can be printed and encoded as UTF-8."""
    # Control characters and halves of surrogate pairs.
    bad = ("Cc", "Cs")
    if not isinstance(value, str) or any(
        unicodedata.category(c) in bad for c in value
    ):
        fail(where, "text without control characters", value)


def choice(choices: tuple[str | None, ...]) -> Rule:
    """Accept one of `choices`."""

    def check(value: Any, where: str) -> None:
        if value not in choices:
            fail(where, f"one of {choices}", value)

    return check


def optional(rule: Rule) -> Rule:
    """Accept `None` and what `rule` accepts."""
    return lambda value, where: None if value is None else rule(value, where)


def sequence(rule: Rule, least: int = 0, most: int = LONGEST) -> Rule:
    """Accept a list of `least ... most` elements that `rule` accepts."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            fail(where, f"a list of {least} to {most} elements", value)
        for i, element in enumerate(value):
            rule(element, f"{where}[{i}]")

    return check


def mapping(key_rule: Rule, rule: Rule) -> Rule:
    """Accept an object whose keys and values are accepted by two rules."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            fail(where, "an object", value)
        for key, element in value.items():
            key_rule(key, f"{where} (a key)")
            rule(element, f"{where}[{reprlib.repr(key)}]")

    return check


def record(rules: dict[str, Rule], maybe: tuple[str, ...] = ()) -> Rule:
    """Accept an object with the keys of `rules`.

    Args:
        rules: The rule of each key.
        maybe: Keys that may be absent. Default: none.
    """

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            fail(where, "an object", value)
        keys = set(value)
        if not set(rules) - set(maybe) <= keys <= set(rules):
            fail(where, f"an object of the keys {sorted(rules)}", sorted(keys))
        for key, element in value.items():
            rules[key](element, f"{where}.{key}" if where else key)

    return check


def shape(low: int, known: bool = False) -> Rule:
    """Accept a shape.

    Args:
        low: Smallest length of an axis.
        known: Whether every axis must have a length. If `False` (the default),
            an axis may be `None`.
    """
    axis = integer(low, LONGEST)
    axes = sequence(axis if known else optional(axis), 0, MOST_AXES)

    def check(value: Any, where: str) -> None:
        axes(value, where)
        if math.prod(n for n in value if n is not None) > LARGEST:
            fail(where, f"a shape of at most {LARGEST} elements", value)

    return check


def file_name(value: Any, where: str) -> None:
    """Accept a relative path with `/` that stays inside its folder."""
    text(value, where)
    parts = value.split("/")
    if "\\" in value or ":" in value or {"", ".", ".."} & set(parts):
        fail(where, "a path inside the artifact's folder", value)


def sha256(value: Any, where: str) -> None:
    """Accept the 64 hexadecimal digits of a checksum."""
    digits = "0123456789abcdef"
    if not isinstance(value, str) or len(value) != 64 or set(value) - {*digits}:
        fail(where, "64 hexadecimal digits", value)


count = integer(0)
dtype = choice(DTYPES)
INPUT = record(
    {"name": text, "shape": shape(1), "dtype": dtype, "below": integer(1)},
    maybe=("below",),
)
OUTPUT = record({"shape": shape(0), "dtype": dtype})
FILE = record({"bytes": count, "sha256": sha256})
MIXTURE = record(
    {
        "path": text,
        "class": text,
        "router": text,
        "num_experts": integer(1),
        "top_k": number(0),  # a mean if experts choose tokens
        "capacity_factor": optional(number(0)),
        "eval_capacity_factor": optional(number(0)),
        "expert_parameters": count,
        "expert_bytes": count,
    }
)
VERIFIED = record(
    {
        "largest_difference": number(0),
        "tolerance": number(0),
        "shapes": sequence(sequence(shape(0, known=True))),
        "unreached": mapping(text, sequence(count)),
    }
)
MANIFEST: dict[str, Rule] = {
    "schema": count,
    "format": text,
    "file": text,
    "inputs": sequence(INPUT, least=1),
    "outputs": sequence(OUTPUT, least=1),
    "quantize": optional(choice(("int8", "int4"))),
    "exported_on": text,
    "written_by": text,
    "versions": mapping(text, optional(text)),
    "bytes": count,
    "parameters": count,
    "active_parameters": number(0),
    "parameter_bytes": count,
    "mixtures": sequence(MIXTURE),
    "verified": optional(VERIFIED),
    "files": mapping(file_name, FILE),
    "checksum": sha256,
}
# The schema of manifests that were written before files had checksums.
OLD_MANIFEST = {
    key: rule
    for key, rule in MANIFEST.items()
    if key not in ("files", "checksum")
}


def check(manifest: dict[str, Any], old: bool) -> None:
    """Check a manifest against the schema.

    Args:
        manifest: Decoded JSON object.
        old: Whether the manifest was written before files had checksums.

    Raises:
        ValueError: If a key is missing or unknown, or if a value breaks its
            rule.
    """
    record(OLD_MANIFEST if old else MANIFEST)(manifest, "")
    inputs = manifest["inputs"]
    names = [spec["name"] for spec in inputs]
    if len(set(names)) < len(names):
        fail("inputs", "of different names", names)
    for i, spec in enumerate(inputs):
        if not spec["shape"]:
            fail(
                f"inputs[{i}].shape", "a list of the batch's axis and more", []
            )
    for batch in (manifest["verified"] or {}).get("shapes", []):
        if [len(s) for s in batch] != [len(spec["shape"]) for spec in inputs]:
            fail("verified.shapes", "shapes of the inputs", batch)
    if manifest["active_parameters"] > manifest["parameters"]:
        fail(
            "active_parameters",
            "at most `parameters`",
            manifest["active_parameters"],
        )
