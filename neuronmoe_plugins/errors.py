"""The one exception that ends a command with a single clear line, and what such lines are made of."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input from the user: names the file, key or value and what to do.

    The command line prints the message on one line and exits with code 2. It is a `ValueError`, so that programs that
    call the library directly need not know it.
    """


def one_line(error: BaseException | str) -> str:
    """A message without its line breaks, as other libraries' messages may have them; an error's kind if it has none."""
    return " ".join(str(error).split()) or ("" if isinstance(error, str) else type(error).__name__)


def disk_error(error: OSError) -> str:
    """What an operating system's error says in one line: the file, where it names one, and what is wrong with it."""
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{error.strerror or one_line(error)}"


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like `word`, whatever their case, or None if none is like it."""
    by_form = {name.lower().replace("-", "_"): name for name in names}
    matches = get_close_matches(word.lower().replace("-", "_"), by_form, n=1, cutoff=cutoff)
    return by_form[matches[0]] if matches else None


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing, to end an error with."""
    match = nearest(str(word), names)
    return "" if match is None else f": did you mean {match}?"
