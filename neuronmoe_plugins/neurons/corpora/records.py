"""What every reader of a corpus yields: texts with the place each stands at."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from neuronmoe_plugins.errors import UserError

FIELDS_SHOWN = 10


class Sentence(NamedTuple):
    """A text of a corpus and where it stands."""

    text: str
    name: str
    """`FILE:LINE`, `FILE:row N` or `hub:NAME@SPLIT:row N`; split texts have `#K` after it, the K-th sentence there."""


def parse_json(text: str, place: str) -> object:
    """The JSON value in `text`; raises `UserError` naming `place`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: broken JSON ({one_line(error)})") from error


def text_field(record: object, field: str, place: str) -> str:
    """The text in a record's field; raises `UserError` naming `place` and, without the field, those that there are."""
    if not isinstance(record, dict):
        raise UserError(f"{place}: not a JSON object with a field {field!r}")
    if field not in record:
        raise UserError(f"{place}: no field {field!r}; there are: {list_fields(record)}; choose one by --text-field")
    return require_text(record[field], f"{place}: field {field!r}")


def require_text(value: object, what: str) -> str:
    """`value` itself, if it is a string of valid Unicode; else a `UserError` that begins with `what`."""
    if not isinstance(value, str):
        raise UserError(f"{what} is {'null' if value is None else type(value).__name__}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} has a lone surrogate (\\u{ord(value[error.start]):x}), which is no text") from error
    return value


def list_fields(fields: Iterable[object]) -> str:
    """The first names, comma-separated, to be shown in one line."""
    names = [repr(field) for field in fields]
    more = [f"and {len(names) - FIELDS_SHOWN} more"] if len(names) > FIELDS_SHOWN else []
    return ", ".join(names[:FIELDS_SHOWN] + more) or "none"


def one_line(error: BaseException) -> str:
    """The message of an error in one line, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
