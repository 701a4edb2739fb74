"""Reads the YAML of `neuronmoe data`, and says in one line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from neuronmoe_plugins.data.amounts import UNITS, Amount
from neuronmoe_plugins.data.spec import ANSWERS, FORMATS, FORMS, ROLES, DatasetSpec, DataSpec, Filters, LocalFiles
from neuronmoe_plugins.errors import UserError, one_line
from neuronmoe_plugins.neurons.corpora.sources import HUB, HUB_DATASET, LANGUAGE, HubDataset
from neuronmoe_plugins.suggestions import did_you_mean

TOP = ("seed", "datasets", "normalise", "near_duplicates", "tokenizer", "format")
HUB_KEYS = ("config", "split", "rows", "revision")
DATASET = (
    *("name", "language", "role", "source", *HUB_KEYS, "text", "filters", *UNITS),
    *("broken_records", "unreadable_files", "shortage"),
)
FILTERS = ("min_characters", "max_characters", "language")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def load_spec(path: Path) -> DataSpec:
    """Read a spec.

    Raises:
        UserError: naming the file, and the data set and key at fault.
    """
    top = _Mapping(_read(path), str(path), TOP)
    entries = top.required("datasets")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: datasets must be a list of data sets")
    datasets = tuple(_dataset(entry, f"{path}: datasets[{number}]") for number, entry in enumerate(entries))
    tokenizer = top.optional("tokenizer", _text)
    _check_together(path, datasets, tokenizer)
    top.required("seed")
    return DataSpec(
        seed=top.optional("seed", _whole(0)),
        datasets=datasets,
        normalise=top.optional("normalise", _one_of(FORMS), DataSpec.normalise),
        near_duplicates=top.optional("near_duplicates", _fraction(below_one=True)),
        tokenizer=tokenizer,
        format=top.optional("format", _one_of(FORMATS), DataSpec.format),
    )


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {one_line(error)}") from error


def _check_together(path: Path, datasets: Sequence[DatasetSpec], tokenizer: str | None) -> None:
    names = [dataset.name for dataset in datasets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two data sets are called {twice}; every name is a file's")
    counted = next((dataset.name for dataset in datasets if dataset.amount.unit == "tokens"), None)
    if counted is not None and tokenizer is None:
        raise UserError(f"{path}: {counted} asks for tokens; say by `tokenizer:` which model's")


def _dataset(entry: object, where: str) -> DatasetSpec:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    values = _Mapping(entry, f"{where} ({name})" if isinstance(name, str) else where, DATASET)
    return DatasetSpec(
        name=values.required("name", _matching(NAME, "a file's name (letters, digits, - _ .)")),
        language=values.required("language", _matching(LANGUAGE, "a language code such as el")),
        role=values.required("role", _one_of(ROLES)),
        source=_source(values),
        amount=_amount(values),
        revision=values.optional("revision", _text),
        text=values.optional("text", _text, DatasetSpec.text),
        filters=_filters(values),
        broken_records=values.optional("broken_records", _one_of(ANSWERS), DatasetSpec.broken_records),
        unreadable_files=values.optional("unreadable_files", _one_of(ANSWERS), DatasetSpec.unreadable_files),
        shortage=values.optional("shortage", _one_of(ANSWERS), DatasetSpec.shortage),
    )


def _source(values: _Mapping) -> LocalFiles | HubDataset:
    source = values.required("source")
    if isinstance(source, str) and source.startswith(HUB):
        match = HUB_DATASET.fullmatch(source.removeprefix(HUB))
        if match is None:
            raise values.error("source", f"{source!r} is not {HUB}OWNER/NAME[:CONFIG][@SPLIT[[:ROWS]]]")
        given = {key: value for key, value in match.groupdict().items() if key in HUB_KEYS and value is not None}
        twice = next((key for key in given if values.has(key)), None)
        if twice is not None:
            raise values.error(twice, f"{source!r} has it already; say it once")
        rows = given.get("rows")
        return HubDataset(
            match["name"],
            given.get("config", values.optional("config", _text)),
            given.get("split", values.optional("split", _text, "train")),
            values.optional("rows", _whole(1)) if rows is None else int(rows),
        )
    stray = next((key for key in HUB_KEYS if values.has(key)), None)
    if stray is not None:
        raise values.error(stray, f"it is for sources that begin with {HUB}")
    patterns = [source] if isinstance(source, str) else source
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise values.error("source", f"must be {HUB}OWNER/NAME, or a path or glob, or a list of these; got {source!r}")
    return LocalFiles(tuple(patterns))


def _amount(values: _Mapping) -> Amount:
    units = [unit for unit in UNITS if values.has(unit)]
    if len(units) != 1:
        found = "it has none" if not units else f"it has {' and '.join(units)}"
        raise UserError(f"{values.where}: exactly one of {', '.join(UNITS)} must say how much; {found}")
    return values.required(units[0], lambda value: Amount.parse(units[0], value))


def _filters(values: _Mapping) -> Filters:
    if not values.has("filters"):
        return Filters()
    given = _Mapping(values.required("filters"), f"{values.where}: filters", FILTERS)
    filters = Filters(
        given.optional("min_characters", _whole(1)),
        given.optional("max_characters", _whole(1)),
        given.optional("language", _fraction(below_one=False)),
    )
    if (filters.min_characters or 1) > (filters.max_characters or float("inf")):
        raise given.error("min_characters", "it is larger than max_characters")
    return filters


class _Mapping:
    """A mapping of the file; reads values by key.

    Args:
        value: What the file has there.
        where: Begins every error.
        keys: What it may have.
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

    def required(self, key: str, check: Callable[[Any], Any] = lambda value: value) -> Any:
        """The checked value; raises `UserError` if it is wrong or missing."""
        if not self.has(key):
            raise UserError(f"{self.where}: {key} is missing")
        return self.optional(key, check)

    def optional(self, key: str, check: Callable[[Any], Any], default: Any = None) -> Any:
        """The checked value, or the default; raises `UserError` if it is wrong."""
        if not self.has(key):
            return default
        try:
            return check(self._value[key])
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def error(self, key: str, what: str) -> UserError:
        """An error about one key."""
        return UserError(f"{self.where}: {key}: {what}")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text; got {value!r}")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        # YAML 1.1 takes the code of Norwegian for a truth value.
        if not isinstance(value, str) or not pattern.fullmatch(value):
            hint = "; put it in quotes" if isinstance(value, bool) else ""
            raise ValueError(f"must be {what}; got {value!r}{hint}")
        return value

    return check


def _one_of(choices: Sequence[str]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}; got {value!r}{did_you_mean(value, choices)}")
        return str(value)

    return check


def _whole(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"must be a whole number from {least} on; got {value!r}")
        return value

    return check


def _fraction(below_one: bool) -> Callable[[object], float]:
    def check(value: object) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= 1 or (below_one and value == 1):  # type: ignore[operator]
            raise ValueError(f"must be a number above 0 and {'below' if below_one else 'at most'} 1; got {value!r}")
        return float(value)  # type: ignore[arg-type]

    return check
