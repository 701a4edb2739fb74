"""What `--corpus LANGUAGE=SOURCE` says: a language, and a file, a folder or a data set of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.languages import NAME
from neuronmoe_plugins.models import HUB_NAME

CORPUS = "--corpus"
HUB = "hub:"
HUB_DATASET = re.compile(
    r"(?P<name>[^:@]*/[^:@]*)(:(?P<config>[^:@]+))?(@(?P<split>[\w.-]+)(\[:(?P<rows>[1-9][0-9]*)\])?)?"
)


@dataclass(frozen=True)
class HubDataset:
    """`hub:OWNER/NAME[:CONFIG][@SPLIT]`, as in `hub:uonlp/CulturaX:el@train[:20000]`."""

    name: str
    """What `datasets.load_dataset` takes: OWNER/NAME, or the path of a folder."""
    config: str | None = None
    split: str = "train"
    rows: int | None = None
    """Only the first so many rows are read; without it all, however long that takes."""

    def __str__(self) -> str:
        config = "" if self.config is None else f":{self.config}"
        rows = "" if self.rows is None else f"[:{self.rows}]"
        return f"{HUB}{self.name}{config}@{self.split}{rows}"

    def require_there(self) -> None:
        """Refuse a path that is not there, which the hub would be asked for; raises `UserError`."""
        if not HUB_NAME.fullmatch(self.name) and not Path(self.name).is_dir():
            raise UserError(
                f"{self} does not exist: there is no such folder, and it is no name on the hub (OWNER/NAME)"
            )

    def local_files(self) -> list[Path]:
        """All files of a folder; none of a name on the hub."""
        return sorted(path for path in Path(self.name).rglob("*") if path.is_file())


@dataclass(frozen=True)
class CorpusSpec:
    """One `--corpus LANGUAGE=SOURCE`, or a data set of `--data`."""

    language: str
    source: Path | HubDataset
    given_by: str | None = None
    """What stands before the source in errors; `--corpus LANGUAGE=` unless given."""
    drawn: int | None = None
    """Of a data set of `--data` how many texts it has, if its manifest says so."""
    is_learned: bool | None = None
    """Of a data set of `--data` whether another one there, of role target, is for learning its language."""

    def __str__(self) -> str:
        return f"{self.language}={self.source}"

    def named(self, source: object) -> str:
        """How the user named this source, or a message that begins with it."""
        return f"{self.given_by or f'--corpus {self.language}='}{source}"

    def same_source(self, other: CorpusSpec) -> bool:
        """Whether both name the same file, folder or data set."""
        if isinstance(self.source, Path) and isinstance(other.source, Path):
            return self.source.resolve() == other.source.resolve()
        return self.source == other.source


def parse_corpus_specs(values: Sequence[str], flag: str = CORPUS, least: int = 2) -> tuple[CorpusSpec, ...]:
    """Read `LANGUAGE=SOURCE` values; raises `UserError` for a malformed or repeated one, or fewer than `least`."""
    specs = tuple(_parse_spec(value, flag) for value in values)
    for position, spec in enumerate(specs):
        for earlier in specs[:position]:
            if earlier.language == spec.language:
                raise UserError(f"{flag} names {spec.language} twice ({earlier.source} and {spec.source}); keep one")
            if earlier.same_source(spec):
                raise UserError(f"{flag} gives {spec.source} to both {earlier.language} and {spec.language}")
    if len(specs) < least:
        raise UserError(f"{flag} was given {len(specs)} time(s); specificity needs at least two languages")
    return specs


def _parse_spec(value: str, flag: str) -> CorpusSpec:
    language, separator, source = value.partition("=")
    if not separator or not source or not NAME.fullmatch(language):
        raise UserError(f"{flag} {value!r} is not LANGUAGE=SOURCE, as in el=greek.jsonl (letters, digits, - and _)")
    found = _parse_hub(value, source, flag) if source.startswith(HUB) else Path(source)
    return CorpusSpec(language, found, None if flag == CORPUS else f"{flag} {language}=")


def _parse_hub(value: str, source: str, flag: str) -> HubDataset:
    match = HUB_DATASET.fullmatch(source.removeprefix(HUB))
    if match is None:
        raise UserError(
            f"{flag} {value!r} is not LANGUAGE=hub:OWNER/NAME[:CONFIG][@SPLIT], "
            "as in el=hub:uonlp/CulturaX:el@train, or @train[:20000] for the first 20000 rows"
        )
    rows = match["rows"]
    return HubDataset(match["name"], match["config"], match["split"] or "train", None if rows is None else int(rows))
