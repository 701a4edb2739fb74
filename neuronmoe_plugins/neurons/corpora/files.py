"""Which files a path stands for, and the reader of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.corpora.lines import Digest, read_jsonl, read_txt
from neuronmoe_plugins.neurons.corpora.parquet import read_parquet
from neuronmoe_plugins.neurons.corpora.records import Sentence, one_line
from neuronmoe_plugins.neurons.corpora.sources import HUB

Reader = Callable[[Path, str, Digest], Iterator[Sentence]]
READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".txt": read_txt,
    ".txt.gz": read_txt,
    ".parquet": read_parquet,
}
KINDS = ", ".join(READERS)


def find_files(path: Path) -> list[Path]:
    """The file itself, or all files of the known kinds in a folder and those below, by name; hidden ones are left out.

    Raises `UserError` for a path that is not there, a file of another kind, or a folder without any.
    """
    if path.is_dir():
        files = [file for file in path.rglob("*") if _belongs(file, path)]
        if not files:
            raise UserError(f"{path} has no file that ends in {KINDS}")
        return sorted(files, key=lambda file: file.relative_to(path).as_posix())
    if not path.exists():
        raise UserError(f"{path} cannot be read: no such file or folder (a data set of the hub is {HUB}OWNER/NAME)")
    if _reader(path) is None:
        raise UserError(f"{path}: the file's name must end in {KINDS}")
    return [path]


def read_file(path: Path, field: str, digest: Digest) -> Iterator[Sentence]:
    """The texts of one file of a known kind, and all its bytes to `digest`; raises `UserError` naming file and place.

    Args:
        path: a file that `find_files` gave.
        field: the field or column of the text, where the kind has any.
        digest: takes the bytes of the file, in order.
    """
    reader = _reader(path)
    if reader is None:
        raise UserError(f"{path}: the file's name must end in {KINDS}")
    try:
        yield from reader(path, field, digest)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error


def _belongs(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and _reader(file) is not None and file.is_file()


def _reader(path: Path) -> Reader | None:
    name = path.name.lower()
    return next((reader for suffix, reader in READERS.items() if name.endswith(suffix)), None)
