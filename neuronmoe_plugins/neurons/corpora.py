"""Reads one corpus per language and samples sentences from it, seeded, in one pass over the file."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.errors import UserError

LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class CorpusSpec:
    """One `--corpus LANGUAGE=FILE`."""

    language: str
    path: Path


@dataclass(frozen=True)
class Sentence:
    text: str
    line: int
    """Line number in the file, from 1."""


@dataclass(frozen=True)
class Corpus:
    """The sampled sentences of one language, in file order, and what is needed to sample them again."""

    language: str
    path: Path
    sha256: str
    available: int
    sentences: tuple[Sentence, ...]

    def names(self) -> list[str]:
        """`FILE:LINE` of every sampled sentence."""
        return [f"{self.path}:{sentence.line}" for sentence in self.sentences]


def parse_corpus_specs(values: Sequence[str]) -> tuple[CorpusSpec, ...]:
    """Read `LANGUAGE=FILE` values; raises `UserError` for a malformed or repeated one, or fewer than two."""
    specs = tuple(_parse_spec(value) for value in values)
    for position, spec in enumerate(specs):
        for earlier in specs[:position]:
            if earlier.language == spec.language:
                raise UserError(f"--corpus names {spec.language} twice ({earlier.path} and {spec.path}); keep one")
            if earlier.path.resolve() == spec.path.resolve():
                raise UserError(f"--corpus gives {spec.path} to both {earlier.language} and {spec.language}")
    if len(specs) < 2:
        raise UserError(f"--corpus was given {len(specs)} time(s); specificity needs at least two languages")
    return specs


def _parse_spec(value: str) -> CorpusSpec:
    language, separator, path = value.partition("=")
    if not separator or not path or not LANGUAGE.fullmatch(language):
        raise UserError(f"--corpus {value!r} is not LANGUAGE=FILE, as in el=greek.jsonl (letters, digits, - and _)")
    return CorpusSpec(language, Path(path))


def sample_corpus(spec: CorpusSpec, samples: int, seed: int) -> Corpus:
    """Sample `samples` sentences of a corpus uniformly, without replacement (reservoir sampling).

    The generator is seeded by (seed, language), so adding a language leaves the other samples as they are.
    `.jsonl` has a `text` field per line, `.txt` one sentence per line; blank lines and blank texts are no sentences.
    Raises `UserError` for a missing, unreadable or empty file, a broken line, or fewer sentences than asked for.
    """
    parse = _line_parser(spec)
    generator = random.Random(f"{seed}:{spec.language}")
    digest = hashlib.sha256()
    reservoir: list[Sentence] = []
    available = 0
    for number, raw in _numbered_lines(spec):
        digest.update(raw)
        text = parse(_decode(raw, spec.path, number), number)
        if not text:
            continue
        available += 1
        slot = len(reservoir) if len(reservoir) < samples else generator.randrange(available)
        if slot < samples:
            reservoir[slot : slot + 1] = [Sentence(text, number)]
    _require_enough(spec, available, samples)
    return Corpus(
        spec.language, spec.path, digest.hexdigest(), available, tuple(sorted(reservoir, key=lambda s: s.line))
    )


def _numbered_lines(spec: CorpusSpec) -> Iterator[tuple[int, bytes]]:
    try:
        with spec.path.open("rb") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise UserError(f"--corpus {spec.language}={spec.path} cannot be read: {error.strerror}") from error


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text; convert the file to UTF-8") from error


def _line_parser(spec: CorpusSpec) -> Callable[[str, int], str]:
    if spec.path.suffix == ".txt":
        return lambda line, number: line
    if spec.path.suffix == ".jsonl":
        return lambda line, number: _text_field(line, spec.path, number) if line else ""
    raise UserError(f"--corpus {spec.language}={spec.path}: the file's name must end in .jsonl or .txt")


def _text_field(line: str, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}:{number}: broken JSON ({error}); each line must be one JSON object") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path}:{number}: no string field 'text' in this line")
    return text.strip()


def _require_enough(spec: CorpusSpec, available: int, samples: int) -> None:
    if available == 0:
        raise UserError(f"--corpus {spec.language}={spec.path} is empty: it has no sentence")
    if available < samples:
        raise UserError(
            f"--corpus {spec.language}={spec.path} has {available} sentences, {samples} were asked for; "
            f"add text or pass --samples {available}"
        )
