"""Reads the YAML of `neuronmoe data`, and says in one line what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuronmoe_plugins.corpora.sources import HUB, HUB_DATASET, LANGUAGE, HubDataset
from neuronmoe_plugins.data.amounts import UNITS, Amount
from neuronmoe_plugins.data.spec import ANSWERS, FORMATS, FORMS, ROLES, DatasetSpec, DataSpec, Filters, LocalFiles
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.reading import Fields, choice, filled_text, fraction, matching, read_yaml, whole

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
    top = Fields(read_yaml(path, broken="is no YAML"), str(path), TOP)
    entries = top.required("datasets")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: datasets must be a list of data sets")
    datasets = tuple(_dataset(entry, f"{path}: datasets[{number}]") for number, entry in enumerate(entries))
    tokenizer = top.optional("tokenizer", filled_text)
    _check_together(path, datasets, tokenizer)
    top.required("seed")
    return DataSpec(
        seed=top.optional("seed", whole(0)),
        datasets=datasets,
        normalise=top.optional("normalise", choice(FORMS), DataSpec.normalise),
        near_duplicates=top.optional("near_duplicates", fraction(below_one=True)),
        tokenizer=tokenizer,
        format=top.optional("format", choice(FORMATS), DataSpec.format),
    )


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
    values = Fields(entry, f"{where} ({name})" if isinstance(name, str) else where, DATASET)
    return DatasetSpec(
        name=values.required("name", matching(NAME, "a file's name (letters, digits, - _ .)")),
        language=values.required("language", matching(LANGUAGE, "a language code such as el")),
        role=values.required("role", choice(ROLES)),
        source=_source(values),
        amount=_amount(values),
        revision=values.optional("revision", filled_text),
        text=values.optional("text", filled_text, DatasetSpec.text),
        filters=_filters(values),
        broken_records=values.optional("broken_records", choice(ANSWERS), DatasetSpec.broken_records),
        unreadable_files=values.optional("unreadable_files", choice(ANSWERS), DatasetSpec.unreadable_files),
        shortage=values.optional("shortage", choice(ANSWERS), DatasetSpec.shortage),
    )


def _source(values: Fields) -> LocalFiles | HubDataset:
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
            given.get("config", values.optional("config", filled_text)),
            given.get("split", values.optional("split", filled_text, "train")),
            values.optional("rows", whole(1)) if rows is None else int(rows),
        )
    stray = next((key for key in HUB_KEYS if values.has(key)), None)
    if stray is not None:
        raise values.error(stray, f"it is for sources that begin with {HUB}")
    patterns = [source] if isinstance(source, str) else source
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise values.error("source", f"must be {HUB}OWNER/NAME, or a path or glob, or a list of these; got {source!r}")
    return LocalFiles(tuple(patterns))


def _amount(values: Fields) -> Amount:
    units = [unit for unit in UNITS if values.has(unit)]
    if len(units) != 1:
        found = "it has none" if not units else f"it has {' and '.join(units)}"
        raise UserError(f"{values.where}: exactly one of {', '.join(UNITS)} must say how much; {found}")
    return values.required(units[0], lambda value: Amount.parse(units[0], value))


def _filters(values: Fields) -> Filters:
    if not values.has("filters"):
        return Filters()
    given = Fields(values.required("filters"), f"{values.where}: filters", FILTERS)
    filters = Filters(
        given.optional("min_characters", whole(1)),
        given.optional("max_characters", whole(1)),
        given.optional("language", fraction(below_one=False)),
    )
    if (filters.min_characters or 1) > (filters.max_characters or float("inf")):
        raise given.error("min_characters", "it is larger than max_characters")
    return filters
