"""Check plain arguments; every floor uses these functions.

Each check returns its value as plain Python, so that configs can be written
as JSON: a NumPy scalar becomes an int, a float, or a bool. Otherwise it raises
a ValueError that names the argument, the rule, what was received, and a remedy.
"""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any, SupportsIndex, TypeGuard

import numpy as np

from keras_moe.types import Assignment

INFINITY = float("inf")
# The packages that define tensors and symbolic dimensions.
_BACKENDS = {"jax", "jaxlib", "tensorflow", "torch", "keras"}


def check_positive_int(name: str, value: object) -> int:
    """Return `value` if it is an integer above 0."""
    if type(value) is int and value > 0:  # in each call of a block
        return value
    if _is_integer(value) and int(value) > 0:
        return int(value)
    raise ValueError(
        f"`{name}` must be an integer above 0. Received: {name}={value!r}. "
        f"Pass, for instance, {name}=2."
    )


def check_optional_int(name: str, value: object) -> int | None:
    """Return `value` if it is None or an integer above 0."""
    return None if value is None else check_positive_int(name, value)


def check_count(name: str, value: object) -> int:
    """Return `value` if it is an integer, 0 or above."""
    if type(value) is int and value >= 0:  # in each call of a block
        return value
    if _is_integer(value) and int(value) >= 0:
        return int(value)
    raise ValueError(
        f"`{name}` must be an integer, 0 or above. Received: {name}={value!r}. "
        "Pass 0 for none."
    )


def check_size(name: str, value: Any) -> Any:
    """Return `value`; if it is a plain value, it must be an integer >= 0.

    A tensor or a symbolic dimension is not checked.
    """
    return check_count(name, value) if is_static(value) else value


def check_top_k(top_k: object, num_experts: int) -> int:
    """Return `top_k` if it is in 1 ... num_experts."""
    number = check_positive_int("top_k", top_k)
    if number <= num_experts:
        return number
    raise ValueError(
        "`top_k` must be at most `num_experts`: a token's experts are "
        f"distinct. Received: top_k={top_k}, num_experts={num_experts}. Lower "
        "`top_k` or raise `num_experts`."
    )


def check_bool(name: str, value: object) -> bool:
    """Return `value` if it is True or False."""
    if type(value) is bool:
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(
        f"`{name}` must be True or False. Received: {name}={value!r}. Pass a "
        "bool; a string such as 'False' is true in Python."
    )


def check_seed(value: object) -> int | None:
    """Return a `seed` if it is None or an integer in 0 ... 2**31 - 1."""
    if value is None:
        return None
    if _is_integer(value) and 0 <= int(value) < 2**31:
        return int(value)
    raise ValueError(
        "`seed` must be None or an integer in 0 ... 2**31 - 1. Received: "
        f"seed={value!r}. Pass, for instance, seed=1."
    )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return str(value)
    remedy = f"The default is {choices[0]!r}."
    nearest = nearest_of(value, choices)
    if nearest is not None:
        remedy = f"Did you mean {nearest!r}?"
    raise ValueError(
        f"`{name}` must be one of {choices}. Received: {name}={value!r}. "
        f"{remedy}"
    )


def check_rate(name: str, value: object) -> float:
    """Return `value` if it is a number in 0 <= value < 1."""
    number = as_number(value)
    if number is not None and 0 <= number < 1:
        return number
    raise ValueError(
        f"`{name}` must be a number in 0 <= {name} < 1. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_weight(name: str, value: object) -> float:
    """Return `value` if it is a finite number, 0 or above."""
    number = as_number(value)
    if number is not None and 0 <= number < INFINITY:
        return number
    raise ValueError(
        f"`{name}` must be a finite number, 0 or above. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_capacity_factor(name: str, value: object) -> float | None:
    """Return `value` if it is None or a finite number above 0."""
    if value is None:
        return None
    number = as_number(value)
    if number is not None and 0 < number < INFINITY:
        return number
    raise ValueError(
        f"`{name}` must be None (no token is dropped) or a finite number above "
        f"0. Received: {name}={value!r}. 1.25 is a common start."
    )


def check_above(name: str, value: object, low: float, high: float) -> float:
    """Return `value` if it is a finite number in low < value <= high."""
    number = as_number(value)
    if number is not None and low < number <= high and number < INFINITY:
        return number
    raise ValueError(
        f"`{name}` must be a finite number in {low} < {name} <= {high}. "
        f"Received: {name}={value!r}. Pass a number in this range."
    )


def check_callable(name: str, value: Any, optional: bool = False) -> Any:
    """Return `value` if it is a function, or None if that is allowed."""
    if callable(value) or (optional and value is None):
        return value
    rule = "None or a function" if optional else "a function"
    raise ValueError(
        f"`{name}` must be {rule}. Received: {name}={value!r}. Pass the "
        "function itself, not its name or its result."
    )


def check_list(name: str, value: Any, of: str) -> list[Any]:
    """Return `value` as a list if it is ordered and not a string."""
    unordered = isinstance(value, (str, bytes, dict, set, frozenset))
    if isinstance(value, Iterable) and not unordered and _has_axis(value):
        return list(value)
    raise ValueError(
        f"`{name}` must be a list of {of}. Received: {name}={value!r}. Put "
        "a single one into a list, too."
    )


def check_assignment(value: object) -> Assignment:
    """Return `value` if it is an `Assignment`."""
    if isinstance(value, Assignment):
        return value
    raise ValueError(
        "`assignment` must be an Assignment. Received: assignment="
        f"{value!r}. Pass the output of a router, or the second output of a "
        "block that is called with return_assignment=True."
    )


def as_number(value: object) -> int | float | None:
    """Return a real number as a plain int or float, and None otherwise."""
    if type(value) is int or type(value) is float:
        return value
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    return None


def is_index(value: object, number: int) -> TypeGuard[SupportsIndex]:
    """Return whether a value is an integer in 0 ... number - 1."""
    return _is_integer(value) and 0 <= int(value) < number


def is_static(value: object) -> bool:
    """Return whether a value is plain, not computed by a backend.

    A backend computes tensors, variables, and symbolic dimensions.
    """
    if type(value) in (int, float):
        return True
    origin = type(value).__module__.partition(".")[0]
    if origin in _BACKENDS:
        return False
    return origin in ("builtins", "numpy") or not hasattr(value, "dtype")


def nearest_of(value: object, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to a misspelled one, or None."""
    if not isinstance(value, str):
        return None
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(value.lower(), list(by_lower), 1, 0.6)
    return by_lower[found[0]] if found else None


def _has_axis(value: object) -> bool:
    """Return False for an array of rank 0, which cannot be iterated over."""
    return getattr(value, "ndim", 1) != 0


def _is_integer(value: object) -> TypeGuard[SupportsIndex]:
    is_bool = isinstance(value, (bool, np.bool_))
    return isinstance(value, numbers.Integral) and not is_bool
