"""Reads texts from files of lines: .txt and .jsonl, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.records import Sentence, one_line, parse_json, text_field

Digest = Callable[[Any], None]
"""Takes the bytes of a source in order, as the `update` of a hash does."""


def read_txt(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """Every line as a text; a text file has no fields, so that `field` means nothing here."""
    for place, line in _lines(path, digest):
        if "\0" in line:
            raise UserError(f"{place}: a NUL character; the file is not UTF-8 text (is it UTF-16?)")
        yield Sentence(line, place)


def read_jsonl(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """The text field of every line's JSON object; blank lines are skipped."""
    for place, line in _lines(path, digest):
        if line:
            yield Sentence(text_field(parse_json(line, place), field, place), place)


def _lines(path: Path, digest: Digest) -> Iterator[tuple[str, str]]:
    """`FILE:LINE` and the line without the white space around it."""
    for number, raw in enumerate(_raw_lines(path, digest), start=1):
        place = f"{path}:{number}"
        try:
            yield place, raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text; convert the file to UTF-8") from error


def _raw_lines(path: Path, digest: Digest) -> Iterator[bytes]:
    with io.BufferedReader(_HashedFile(path, digest)) as file:
        if not path.name.lower().endswith(".gz"):
            yield from file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield from unpacked
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: broken gzip file ({one_line(error)})") from error


class _HashedFile(io.FileIO):
    """A file that gives the bytes read from it to a digest as well."""

    def __init__(self, path: Path, digest: Digest) -> None:
        super().__init__(path)
        self._digest = digest

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._digest(memoryview(buffer)[:count])
        return count
