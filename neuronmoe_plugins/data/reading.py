"""Reads the records of a shard, and tells those without a text from those with one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from neuronmoe_plugins.corpora.texts import list_fields, text_column
from neuronmoe_plugins.data.shards import PARQUET, Shard, UnreadableFileError
from neuronmoe_plugins.errors import UserError, did_you_mean, one_line

LONGEST_LINE = 256 << 20
BLOCK = 1 << 20
TELL_BYTES = 1 << 22
BOM = b"\xef\xbb\xbf"
_from_json = json.JSONDecoder().decode
"""As json.loads, without its questions about the arguments, which take as long as a short record."""

NOT_UTF8, NOT_JSON, NO_FIELD, NO_TEXT, SURROGATE, TOO_LONG = KINDS_OF_BROKEN = (
    "not UTF-8",
    "broken JSON",
    "without the field",
    "no text in the field",
    "a lone surrogate",
    "longer than 256 MiB",
)


@dataclass(frozen=True)
class Broken:
    """A record without a readable text.

    Attributes:
        kind: One of `KINDS_OF_BROKEN`.
        where: File, and byte or row.
        fields: For a record without the field, those that it has.
    """

    kind: str
    where: str = ""
    fields: tuple[str, ...] = ()


Wanted = Callable[[int], bool]
Consumed = Callable[[int], None]


def every(_row: int) -> bool:
    """Want all rows."""
    return True


def ignore(_done: int) -> None:
    """Take no notice."""


def read_shard(
    shard: Shard, field: str, wanted: Wanted = every, consumed: Consumed = ignore
) -> Iterator[tuple[int, str | Broken]]:
    """The records of a shard in order; blank lines are none.

    Args:
        shard: What to read.
        field: Field or column of the texts; a text file has none.
        wanted: Whether the record of a number is to be read; others cost next to nothing.
        consumed: Told now and then how much more of the shard's size was read.

    Yields:
        The record's number in the shard, from 0, and its text as it stands in the file, or what is wrong with it.

    Raises:
        UnreadableFileError: where the file ends too early or cannot be read, with the byte.
        UserError: for a Parquet file without such a column of text.
    """
    if shard.kind == PARQUET:
        yield from _parquet_records(shard, field, wanted, consumed)
        return
    read = _object_text if shard.holds_objects else _line_text
    name = shard.path if shard.compression is None else f"{shard.path} (unpacked)"
    for row, (offset, line) in enumerate(_lines(shard, consumed)):
        if wanted(row) and (line is None or not line.isspace()):
            value = Broken(TOO_LONG) if line is None else read(line, field)
            yield row, value if isinstance(value, str) else replace(value, where=f"{name} at byte {offset}")


def missing_field(broken: Broken, field: str, path: str) -> UserError:
    """What to say of a file none of whose records has the field."""
    hint = did_you_mean(field, broken.fields)
    return UserError(
        f"{path}: no record has the field {field!r}; there are: {list_fields(broken.fields)}; "
        f"name the texts' field by `text:`{hint}"
    )


def _object_text(line: bytes, field: str) -> str | Broken:
    try:
        record = _from_json(line.decode())
        value = record[field]
        value.isascii  # noqa: B018 - cheaper than a call, and only texts have it
    except UnicodeDecodeError:
        return Broken(NOT_UTF8)
    except (ValueError, RecursionError):
        return Broken(NOT_JSON)
    except (KeyError, TypeError, IndexError):
        return Broken(NO_FIELD, fields=tuple(record) if isinstance(record, dict) else ())
    except AttributeError:
        return Broken(NO_TEXT)
    return str(value)


def _line_text(line: bytes, field: str) -> str | Broken:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Broken(NOT_UTF8)
    # UTF-16 text mostly passes for UTF-8 with NUL characters.
    return Broken(NOT_UTF8) if "\0" in text else text


def _lines(shard: Shard, consumed: Consumed) -> Iterator[tuple[int, bytes | None]]:
    """Offset (of a compressed file, in its contents) and bytes, None if too long, of each line that begins here."""
    with _opened(shard) as (file, position):
        offset = shard.start
        if offset:
            # The line that begins before belongs to the shard before; if it ends there, nothing is skipped.
            file.seek(offset - 1)
            offset += _skip_line(file) - 1
        end = shard.end if shard.compression is None else None
        told = position()
        while end is None or offset < end:
            if (now := position()) >= told + TELL_BYTES:
                consumed(now - told)
                told = now
            try:
                line = file.readline(LONGEST_LINE)
                length = len(line)
                is_whole = length < LONGEST_LINE or line.endswith(b"\n")
                if not is_whole:
                    length += _skip_line(file)
            except (OSError, ValueError) as error:  # Arrow has errors of both kinds
                raise _unreadable(shard, position(), error) from error
            if not line:
                return
            yield offset, (line.removeprefix(BOM) if offset == 0 else line) if is_whole else None
            offset += length


def _skip_line(file: BinaryIO) -> int:
    """Read to the end of the line without keeping it; returns the number of bytes."""
    skipped = 0
    while block := file.readline(BLOCK):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped


@contextmanager
def _opened(shard: Shard) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The file's contents, and a function to the byte of the file up to which it was read."""
    try:
        raw = open(shard.path, "rb", buffering=BLOCK)  # noqa: SIM115, PTH123 - closed below, in either case
    except OSError as error:
        raise _unreadable(shard, 0, error) from error
    with raw:
        if shard.compression is None:
            yield raw, raw.tell
            return
        import pyarrow as pa

        # Not closed by itself, since closing it would close the file, whose position is still asked for.
        unpacked = pa.CompressedInputStream(pa.PythonFile(raw, "r"), shard.compression)
        yield io.BufferedReader(unpacked, BLOCK), raw.tell


def _unreadable(shard: Shard, offset: int, error: BaseException) -> UnreadableFileError:
    return UnreadableFileError(
        f"{shard.path} cannot be read beyond byte {offset} ({one_line(getattr(error, 'strerror', None) or error)}); "
        "get the file again, or leave it out by `unreadable_files: warn`"
    )


def _parquet_records(
    shard: Shard, field: str, wanted: Wanted, consumed: Consumed
) -> Iterator[tuple[int, str | Broken]]:
    row = 0
    for column, share in _parquet_columns(shard, field):
        consumed(int(shard.size * share))
        for value in _values(column):
            if wanted(row):
                where = f"{shard.path} at row {row} of row groups {shard.start} to {shard.end - 1}"
                yield row, value if isinstance(value, str) else Broken(NO_TEXT if value is None else NOT_UTF8, where)
            row += 1


def _parquet_columns(shard: Shard, field: str) -> Iterator[tuple[Any, float]]:
    """Arrow arrays of the column in order, and the share of each in the shard's rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    position = 0
    try:
        with pq.ParquetFile(shard.path) as file:
            groups = range(shard.start, shard.end)
            rows = sum(file.metadata.row_group(group).num_rows for group in groups)
            for group in groups:
                position = file.metadata.row_group(group).column(0).file_offset
                for column in text_column(file, shard.path, field, "name the texts' column by `text:`", [group]):
                    yield column, len(column) / rows
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shard, position, error) from error


def _values(column: Any) -> list[str | bytes | None]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        import pyarrow as pa

        return [_decoded(value) for value in column.cast(pa.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
