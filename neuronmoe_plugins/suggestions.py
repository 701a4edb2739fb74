"""The nearest of the right names to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like `word`, whatever their case, or None if none is like it."""
    by_form = {name.lower().replace("-", "_"): name for name in names}
    matches = get_close_matches(word.lower().replace("-", "_"), by_form, n=1, cutoff=cutoff)
    return by_form[matches[0]] if matches else None


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing, to end an error with."""
    match = nearest(str(word), names)
    return "" if match is None else f": did you mean {match}?"
