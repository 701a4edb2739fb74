"""Reads the texts of a corpus with the place each stands at: from files of lines, Parquet files and the hub."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from neuronmoe_plugins.corpora.beginnings import wrong_content
from neuronmoe_plugins.corpora.sources import HUB, HubDataset
from neuronmoe_plugins.errors import UserError, one_line

PARQUET = ".parquet"
FIELDS_SHOWN = 10
ROWS_AT_ONCE = 1024
BLOCK_BYTES = 1 << 20
OLDEST_DATASETS = 4
"""Earlier releases of `datasets` can run a data set's own code."""

Digest = Callable[[Any], None]
"""Takes the bytes of a source in order, as the `update` of a hash does."""


class NotUtf8Error(UserError):
    """A line of a file that is not UTF-8."""


class Sentence(NamedTuple):
    """A text of a corpus and where it stands."""

    text: str
    name: str
    """`FILE:LINE`, `FILE:row N` or `hub:NAME@SPLIT:row N`; split texts have `#K` after it, the K-th sentence there."""


def ending_of(path: Path, endings: Iterable[str]) -> str | None:
    """Which of these endings, in small letters, a file's name has; its case does not matter."""
    name = path.name.lower()
    return next((ending for ending in endings if name.endswith(ending)), None)


def has_fields(name: str) -> bool:
    """Whether a file, or a data set of the hub, has records; blank lines of a text file mean nothing."""
    return not name.lower().endswith((".txt", ".txt.gz"))


def files_below(folder: Path, endings: Collection[str]) -> list[Path]:
    """All files with one of these endings in a folder and those below, in any order; hidden ones are left out."""
    files = (file for file in folder.rglob("*") if ending_of(file, endings) is not None and file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def find_files(path: Path) -> list[Path]:
    """The file itself, or all files of the known kinds in a folder and those below, by name; hidden ones are left out.

    Raises `UserError` for a path that is not there, a file of another kind, or a folder without any.
    """
    if path.is_dir():
        files = files_below(path, READERS)
        if not files:
            raise UserError(f"{path} has no file that ends in {KINDS}")
        return sorted(files, key=lambda file: file.relative_to(path).as_posix())
    if not path.exists():
        raise UserError(f"{path} cannot be read: no such file or folder (a data set of the hub is {HUB}OWNER/NAME)")
    if ending_of(path, READERS) is None:
        raise UserError(f"{path}: the file's name must end in {KINDS}")
    return [path]


def read_file(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """The texts of one file of a known kind, and all its bytes to `digest`; raises `UserError` naming file and place.

    Args:
        path: a file that `find_files` gave.
        field: the field or column of the text, where the kind has any.
        digest: takes the bytes of the file, in order.
    """
    ending = ending_of(path, READERS)
    if ending is None:
        raise UserError(f"{path}: the file's name must end in {KINDS}")
    if ending != PARQUET and (problem := wrong_content(path, ending)):
        raise UserError(f"{path} {problem}")
    try:
        yield from READERS[ending](path, field, digest)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


def read_txt(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """Every line as a text; a text file has no fields, so that `field` means nothing here."""
    for place, line in _lines(path, digest):
        if "\0" in line:
            raise UserError(f"{place}: a NUL character; the file is not UTF-8 text")
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
            raise NotUtf8Error(f"{place}: not UTF-8 text") from error


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


def read_parquet(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """The text of every row in the column `field`; raises `UserError` for anything that is no Parquet file with it."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest(block)
    number = 0
    for column in _columns(path, field):
        for value in column:
            number += 1
            name = f"{path}:row {number}"
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: not UTF-8 text") from error
            yield Sentence(require_text(text, f"{name}: column {field!r}"), name)


def _columns(path: Path, field: str) -> Iterator[Any]:
    """Arrow arrays of the column, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from text_column(file, path, field, "choose by --text-field")
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def text_column(
    file: Any, path: Path | str, field: str, advice: str, groups: Sequence[int] | None = None
) -> Iterator[Any]:
    """The Arrow arrays of one column of text, in order.

    Args:
        file: An open `pyarrow.parquet.ParquetFile`.
        path: Its name in errors.
        field: The column's name.
        advice: Ends the errors.
        groups: The row groups to read; all unless given.

    Raises:
        UserError: if it has no single column of text with this name.
        ArrowException, OSError, ValueError: if it cannot be read.
    """
    _require_text_column(file.schema_arrow, path, field, advice)
    for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups, columns=[field]):
        yield batch.column(0)


def _require_text_column(schema: Any, path: Path | str, field: str, advice: str) -> None:
    from pyarrow import types

    if field not in schema.names:
        raise UserError(f"{path}: no column {field!r}; there are: {list_fields(schema.names)}; {advice}")
    if schema.names.count(field) > 1:
        raise UserError(f"{path}: {schema.names.count(field)} columns are called {field!r}")
    kind = schema.field(field).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    textual = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(is_kind(kind) for is_kind in textual):
        raise UserError(f"{path}: column {field!r} holds {kind}, not text; {advice}")


def read_hub(dataset: HubDataset, field: str, digest: Digest) -> Iterator[Sentence]:
    """The text field of every row, in the data set's order; the digest takes each text and a line break.

    Raises `UserError` if `datasets` is missing or the data set, its configuration, its split or the field is.
    """
    for number, record in enumerate(_records(dataset), start=1):
        name = f"{dataset}:row {number}"
        text = text_field(record, field, name)
        digest(text.encode())
        digest(b"\n")
        yield Sentence(text, name)


def _records(dataset: HubDataset) -> Iterator[dict[str, Any]]:
    datasets = import_datasets(dataset)
    try:
        stream = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
        yield from islice(stream, dataset.rows)
    except Exception as error:  # the hub, the network and every file format have errors of their own
        raise UserError(f"{dataset} cannot be read: {one_line(error)}") from error


def import_datasets(dataset: HubDataset) -> Any:
    dataset.require_there()
    advice = f"pip install 'datasets>={OLDEST_DATASETS}'"
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"{dataset} needs the package datasets: {advice}") from error
    if int(datasets.__version__.split(".")[0]) < OLDEST_DATASETS:
        raise UserError(f"datasets {datasets.__version__} can run code of a data set; for {dataset}: {advice}")
    return datasets


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


Reader = Callable[[Path, str, Digest], Iterator[Sentence]]
READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".txt": read_txt,
    ".txt.gz": read_txt,
    PARQUET: read_parquet,
}
KINDS = ", ".join(READERS)
