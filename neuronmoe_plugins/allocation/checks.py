"""What a value read from a YAML or JSON file may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

Check: TypeAlias = Callable[[Any], bool]

LONGEST = 200


def is_count(value: object) -> TypeGuard[int]:
    """A whole number, 1 or more, of 64 bits."""
    return is_total(value) and 1 <= value < 2**63


def is_total(value: object) -> TypeGuard[int]:
    """A whole number, zero or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: object) -> TypeGuard[float]:
    """A number that a float can hold, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_score(value: object) -> bool:
    """A finite number, zero or more."""
    return is_number(value) and math.isfinite(value) and value >= 0


def is_text(value: object) -> bool:
    """A text."""
    return isinstance(value, str)


def list_of(check: Check) -> Check:
    """A list whose every entry passes."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def list_of_length(length: int, check: Check) -> Check:
    """A list of so many entries, every one of which passes."""
    return lambda value: list_of(check)(value) and len(value) == length


def or_null(check: Check) -> Check:
    """None, or what passes."""
    return lambda value: value is None or check(value)


def one_of(*allowed: str) -> Check:
    """One of these texts."""
    return lambda value: isinstance(value, str) and value in allowed


def shown(value: object) -> str:
    """How an error message shows a wrong value, on one line and not endlessly long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes out, or nested too deeply
        return "too large to print"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
