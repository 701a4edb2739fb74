"""What `neuronmoe data` is asked for, read from its YAML: data sets, where each is drawn from, and how much of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from neuronmoe_plugins.corpora.sources import HUB, HUB_DATASET, HubDataset
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.languages import CODE
from neuronmoe_plugins.reading import Fields, choice, filled_text, fraction, matching, read_yaml, whole

ROLES = ("held-out", "analysis", "replay", "target")
"""In the order in which documents are handed out: the small sets, which must be fair samples, come first."""
FORMS = ("NFC", "NFKC", "none")
FORMATS = ("jsonl", "parquet")
ANSWERS = ("error", "warn")
ANY = "any"
UNITS = ("documents", "sentences", "bytes", "tokens")
ALL = "all"
FACTORS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
NUMBER = re.compile(r"(?P<number>\d[\d_,]*(\.\d+)?)\s*(?P<factor>[kmbgt]?)b?", re.IGNORECASE)
TOP = ("seed", "datasets", "normalise", "near_duplicates", "tokenizer", "format")
HUB_KEYS = ("config", "split", "rows", "revision")
DATASET = (
    *("name", "language", "role", "source", *HUB_KEYS, "text", "filters", *UNITS),
    *("broken_records", "unreadable_files", "shortage"),
)
FILTERS = ("min_characters", "max_characters", "language")
FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Amount:
    """What is asked for.

    Attributes:
        unit: documents, sentences (each of another document), bytes of UTF-8, or tokens without special ones.
        number: How many; None for all there is.
    """

    unit: str
    number: int | None

    @classmethod
    def parse(cls, unit: str, value: object) -> Amount:
        """Read `1000`, `2e9`, `50_000`, `2B`, `500k`, `10MB`, `1.5 GB` or `all`; factors are decimal.

        Raises:
            ValueError: with what the value must be.
        """
        if value == ALL:
            return cls(unit, None)
        number = _number(value)
        if number is None or not math.isfinite(number) or number < 1 or number != int(number):
            raise ValueError(f"must be a whole number from 1 on, such as 50000, 2B or 10MB, or {ALL}; got {value!r}")
        return cls(unit, int(number))

    def __str__(self) -> str:
        return f"{ALL if self.number is None else format(self.number, ',')} {self.unit}"


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    text = str(value).strip()
    match = NUMBER.fullmatch(text)
    if match is not None:
        digits = match["number"].replace("_", "").replace(",", "")
        # Through integers where there is no fraction, since a float would lose digits beyond 2**53.
        return (float(digits) if "." in digits else int(digits)) * FACTORS[match["factor"].lower()]
    try:
        return float(text)  # YAML reads 2e9 as text
    except ValueError:
        return None


@dataclass(frozen=True)
class Filters:
    """Which texts count; None lets all pass."""

    min_characters: int | None = None
    max_characters: int | None = None
    language: float | None = None
    """Least probability, in (0, 1], with which language identification finds the data set's own language."""


@dataclass(frozen=True)
class LocalFiles:
    """Files on this machine.

    Attributes:
        patterns: Paths and globs as the spec has them, relative to the spec's folder.
    """

    patterns: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    Attributes:
        name: Of the file, and of the entry in dataset_info.json.
        language: Its code.
        role: One of `ROLES`.
        source: Where its documents are. Of a hub data set with `rows`, the sample is drawn from the first so many;
            without, rows are taken in their order until it is complete.
        amount: How much of it.
        revision: Commit, branch or tag of a hub data set.
        text: Field or column of the texts.
        filters: Which texts count.
        broken_records: `warn` counts records without a readable text and ends where they are more than 10 % of a file,
            `any` counts however many, `error` ends at the first.
        unreadable_files: `warn` leaves a file out that cannot be read to its end, `error` ends there.
        shortage: `warn` takes what there is where the source has less than the amount, `error` ends there.
    """

    name: str
    language: str
    role: str
    source: LocalFiles | HubDataset
    amount: Amount
    revision: str | None = None
    text: str = "text"
    filters: Filters = field(default_factory=Filters)
    broken_records: str = "warn"
    unreadable_files: str = "error"
    shortage: str = "error"

    def record(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class DataSpec:
    """All data sets of one `neuronmoe data`.

    Attributes:
        seed: Of the sampling.
        datasets: In the order of the file.
        normalise: Unicode form of the texts, one of `FORMS`.
        near_duplicates: Jaccard similarity, in (0, 1), from which two documents count as one; None finds equal ones.
        tokenizer: Folder or hub name of the model whose tokens are counted.
        format: One of `FORMATS`.
    """

    seed: int
    datasets: tuple[DatasetSpec, ...]
    normalise: str = "NFC"
    near_duplicates: float | None = None
    tokenizer: str | None = None
    format: str = "jsonl"

    def in_order(self) -> list[DatasetSpec]:
        """The data sets in the order in which they get documents."""
        return sorted(self.datasets, key=lambda dataset: ROLES.index(dataset.role))


def load_spec(path: Path) -> DataSpec:
    """Read a spec.

    Raises:
        UserError: naming the file, and the data set and key at fault.
    """
    top = Fields(read_yaml(path, broken="is no YAML"), str(path), TOP)
    entries = top.required("datasets")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: datasets must be a list of data sets")
    read = (_dataset(entry, f"{path}: datasets[{number}]") for number, entry in enumerate(entries))
    datasets = tuple(_beside(dataset, path.parent) for dataset in read)
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


def _beside(dataset: DatasetSpec, base: Path) -> DatasetSpec:
    """The same, where a folder of `hub:` is relative to the spec's, if it is there."""
    source = dataset.source
    if isinstance(source, LocalFiles) or not (base / source.name).is_dir():
        return dataset
    return replace(dataset, source=replace(source, name=str(base / source.name)))


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
        name=values.required("name", matching(FILE_NAME, "a file's name (letters, digits, - _ .)")),
        language=values.required("language", matching(CODE, "a language code such as el")),
        role=values.required("role", choice(ROLES)),
        source=_source(values),
        amount=_amount(values),
        revision=values.optional("revision", filled_text),
        text=values.optional("text", filled_text, DatasetSpec.text),
        filters=_filters(values),
        broken_records=values.optional("broken_records", choice((*ANSWERS, ANY)), DatasetSpec.broken_records),
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
