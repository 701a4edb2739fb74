"""Reads texts from one column of a Parquet file, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.lines import Digest
from neuronmoe_plugins.neurons.corpora.records import Sentence, list_fields, one_line, require_text

ROWS_AT_ONCE = 1024
BLOCK_BYTES = 1 << 20


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
            yield Sentence(require_text(_as_python(value, name), f"{name}: column {field!r}"), name)


def _columns(path: Path, field: str) -> Iterator[Any]:
    """Arrow arrays of the column, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            require_text_column(file.schema_arrow, path, field, "choose by --text-field")
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[field]):
                yield batch.column(0)
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({one_line(error)})") from error


def require_text_column(schema: Any, path: Path | str, field: str, advice: str) -> None:
    """Raise `UserError`, ending in the advice, if an Arrow schema has no single column of text with this name."""
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


def _as_python(value: Any, name: str) -> object:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 text") from error
