"""Reads the JSON and YAML that users and other programs hand us, and says in one line what is wrong with it.

A file is read whole by `read_json_object` or `read_yaml`. What its values may be is said by a `Check`, a question to a
value; `Fields` reads the values of a mapping by readers, which are checks that raise.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import yaml

from neuronmoe_plugins.errors import UserError, did_you_mean, one_line

Check: TypeAlias = Callable[[Any], bool]
Reader: TypeAlias = Callable[[Any], Any]
"""From a value of a file to what it stands for; raises `ValueError` with what it must be."""

LONGEST = 200
"""Characters of a wrong value in an error."""


def read_json_object(
    path: Path, remedy: str, *, missing: str | None = None, wrong: str = "is not a JSON object"
) -> dict[str, Any]:
    """Read a UTF-8 file that must hold one JSON object.

    Args:
        path: The file.
        remedy: What to do, or what the file should be; it ends the messages on the file's content.
        missing: The message where there is no such file; unless given, that it does not exist, and the remedy.
        wrong: What is said of JSON that is not an object.

    Raises:
        UserError: in one line, if the file is missing, cannot be read, or holds something else.
    """
    raw = _read_bytes(path, missing or f"{path} does not exist; {remedy}")
    try:
        content = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({one_line(error)}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} {wrong}; {remedy}")
    return content


def read_yaml(path: Path, *, missing: str | None = None, broken: str = "is not YAML") -> object:
    """Read a UTF-8 file of YAML.

    Args:
        path: The file.
        missing: The message where there is no such file; unless given, that it cannot be read.
        broken: What is said of a file that is something else.

    Raises:
        UserError: in one line, if the file is missing, cannot be read, or is no YAML.
    """
    raw = _read_bytes(path, missing)
    try:
        return yaml.safe_load(raw.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except Exception as error:  # not only YAMLError: KeyError for `!!bool x`, ValueError for dates that never were
        raise UserError(f"{path} {broken}: {one_line(error)}") from error


def _read_bytes(path: Path, missing: str | None) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            raise UserError(missing) from error
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


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


def is_text(value: object) -> TypeGuard[str]:
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


def must_be(meaning: str, check: Check, hint: Callable[[Any], str] = lambda value: "") -> Reader:
    """A reader of values that pass a check.

    Args:
        meaning: What the value must be.
        check: Whether it is.
        hint: What ends the error about a wrong one.
    """

    def read(value: Any) -> Any:
        if not check(value):
            raise ValueError(f"must be {meaning}; got {shown(value)}{hint(value)}")
        return value

    return read


def matching(pattern: re.Pattern[str], meaning: str) -> Reader:
    """A reader of texts that match a pattern as a whole."""
    # YAML 1.1 takes the code of Norwegian for a truth value.
    return must_be(
        meaning,
        lambda value: is_text(value) and bool(pattern.fullmatch(value)),
        lambda value: "; put it in quotes" if isinstance(value, bool) else "",
    )


def choice(choices: Sequence[str]) -> Reader:
    """A reader of one of these texts."""
    return must_be(f"one of {', '.join(choices)}", one_of(*choices), lambda value: did_you_mean(value, choices))


def whole(least: int) -> Reader:
    """A reader of whole numbers."""
    return must_be(f"a whole number from {least} on", lambda value: is_total(value) and value >= least)


def fraction(below_one: bool) -> Reader:
    """A reader of numbers above 0 and below, or at most, 1; gives a float."""
    read = must_be(
        f"a number above 0 and {'below' if below_one else 'at most'} 1",
        lambda value: is_number(value) and 0 < value <= 1 and not (below_one and value == 1),
    )
    return lambda value: float(read(value))


filled_text = must_be("a text", lambda value: is_text(value) and value != "")


class Fields:
    """A mapping of a file, whose values are read by key; a value of null counts as missing.

    Args:
        value: What the file has there.
        where: Begins every error.
        keys: What it may have.

    Raises:
        UserError: if it is no mapping, or has another key.
    """

    def __init__(self, value: object, where: str, keys: Sequence[str]) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: must be a mapping with {', '.join(keys)}; got {type(value).__name__}")
        unknown = next((key for key in value if key not in keys), None)
        if unknown is not None:
            hint = did_you_mean(unknown, keys) or f"; there are: {', '.join(keys)}"
            raise UserError(f"{where}: unknown key {unknown!r}{hint}")
        self._value = value

    def has(self, key: str) -> bool:
        """Whether it is there and not null."""
        return self._value.get(key) is not None

    def required(self, key: str, read: Reader = lambda value: value) -> Any:
        """What a reader makes of the value; raises `UserError` if it is wrong or missing."""
        if not self.has(key):
            raise UserError(f"{self.where}: {key} is missing")
        return self.optional(key, read)

    def optional(self, key: str, read: Reader, default: Any = None) -> Any:
        """What a reader makes of the value, or the default; raises `UserError` if it is wrong."""
        if not self.has(key):
            return default
        try:
            return read(self._value[key])
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def error(self, key: str, what: str) -> UserError:
        """An error about one key."""
        return UserError(f"{self.where}: {key}: {what}")
