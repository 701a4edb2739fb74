"""Cuts local files into shards that workers read on their own: byte ranges of lines, row groups, or whole files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.corpora.beginnings import wrong_content
from neuronmoe_plugins.corpora.texts import PARQUET, ending_of, files_below
from neuronmoe_plugins.errors import UserError, one_line

SHARD_BYTES = 64 << 20
LINE_KINDS = (".jsonl", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
KINDS = (*LINE_KINDS, *(kind + suffix for kind in LINE_KINDS for suffix in COMPRESSIONS), PARQUET)


@dataclass(frozen=True)
class Shard:
    """A part of a file.

    Attributes:
        path: The file's.
        kind: Its ending, one of `KINDS`.
        start: First byte of a plain file of lines, or first row group; 0 for a compressed file.
        end: The byte or row group after the last.
        size: Bytes on disk, about.
    """

    path: str
    kind: str
    start: int
    end: int
    size: int

    @property
    def compression(self) -> str | None:
        """What Arrow calls the file's compression."""
        return next((name for suffix, name in COMPRESSIONS.items() if self.kind.endswith(suffix)), None)

    @property
    def holds_objects(self) -> bool:
        """Whether a line is a JSON object; a line of a text file is a text."""
        return self.kind.startswith(".jsonl")


class UnreadableFileError(UserError):
    """A file that cannot be read to its end."""


def find_files(patterns: Sequence[str], folder: Path) -> list[Path]:
    """All files that the patterns stand for, each once, those of a glob or a folder by name.

    Args:
        patterns: Paths of files and folders, and globs (`**` for folders below).
        folder: What relative ones are relative to.

    Raises:
        UserError: for a pattern that no file matches, or a file of another kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = list(_matches(pattern, folder))
        if not files:
            raise UserError(f"source {pattern}: no file in {folder} matches; kinds: {', '.join(KINDS)}")
        wrong = next((file for file in files if ending_of(file, KINDS) is None), None)
        if wrong is not None:
            raise UserError(f"source {pattern}: {wrong} is none of {', '.join(KINDS)}")
        found |= dict.fromkeys(files)
    return list(found)


def cut_file(path: Path, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The shards of a file; their number does not depend on who reads them.

    Raises:
        UnreadableFileError: for a Parquet file without a readable footer.
        UserError: for a file that cannot be opened.
    """
    kind = ending_of(path, KINDS)
    if kind is None:
        raise UserError(f"{path} is none of {', '.join(KINDS)}")
    try:
        size = path.stat().st_size
        if kind == PARQUET:
            return _row_groups(path, size, shard_bytes)
    except OSError as error:
        raise UnreadableFileError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    if problem := wrong_content(path, kind):
        raise UnreadableFileError(f"{path} {problem}, or leave it out by `unreadable_files: warn`")
    if kind in LINE_KINDS:
        starts = range(0, size, shard_bytes)
        ends = [*starts[1:], size]
        return [Shard(str(path), kind, start, end, end - start) for start, end in zip(starts, ends, strict=False)]
    return [Shard(str(path), kind, 0, size, size)] if size else []


def _row_groups(path: Path, size: int, shard_bytes: int) -> list[Shard]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    except pa.ArrowException as error:
        raise UnreadableFileError(
            f"{path}: no Parquet footer at its end, byte {size} ({one_line(error)}); get the file again, or leave it "
            "out by `unreadable_files: warn`"
        ) from error
    shards: list[Shard] = []
    start, filled = 0, 0
    for group, group_size in enumerate(sizes):
        filled += group_size
        if filled >= shard_bytes or group == len(sizes) - 1:
            shards.append(Shard(str(path), PARQUET, start, group + 1, size * (group + 1 - start) // len(sizes)))
            start, filled = group + 1, 0
    return shards


def _matches(pattern: str, folder: Path) -> Iterator[Path]:
    path = folder / pattern
    if path.is_dir():
        yield from sorted(files_below(path, KINDS))
    elif path.exists():
        yield path
    else:
        root = Path(path.anchor) if Path(pattern).is_absolute() else folder
        relative = str(path.relative_to(root)) if root != folder else pattern
        yield from sorted(file for file in root.glob(relative) if file.is_file())
