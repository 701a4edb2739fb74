"""Files and folders that appear whole or not at all, their checksums, and a lock on where they appear."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from neuronmoe_plugins.errors import UserError, one_line

RUST_ERROR = re.compile(r"\(os error \d+\)")


def writable_folder(flag: str, path: Path) -> None:
    """Find out before any work whether a folder can be made, or written to; nothing is left there.

    Args:
        flag: What names it on the command line.
        path: Where it will be.

    Raises:
        UserError: if it is a file, or cannot be written.
    """
    _require_writable(flag, path, path, "folder")


def new_folder(flag: str, path: Path) -> None:
    """The same for one that has to be new or empty; raises `UserError` if it is not, too."""
    writable_folder(flag, path)
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{flag} {path} exists already: choose another folder, or remove it")


def writable_file(flag: str, path: Path) -> None:
    """The same for a file; raises `UserError` if it is a folder, too."""
    _require_writable(flag, path, path.parent, "file")


def _require_writable(flag: str, path: Path, folder: Path, kind: str) -> None:
    try:
        found = ("folder" if path.is_dir() else "file") if path.exists() else kind
        if found != kind:
            raise UserError(f"{flag} {path} is a {found}; name a {kind}")
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {folder}: {error.strerror}") from error


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Say in one line that a place cannot be written where the disk is full or read-only.

    Args:
        place: What is written, as the user named it.

    Raises:
        UserError: for the system's errors, also those of libraries in Rust, which have no type of their own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not (isinstance(error, OSError) or RUST_ERROR.search(str(error))):
            raise
        raise UserError(f"{place} cannot be written: {getattr(error, 'strerror', None) or one_line(error)}") from error


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a temporary neighbour of `path`, which takes its place when the block succeeds; an older one is replaced."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def new_files(folder: Path, last: str) -> Iterator[Path]:
    """Fill a temporary folder, whose files then replace those in `folder` each in one go, the one named `last` last."""
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:  # such as a full disk, which it would keep full
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(partial)
    move_files(partial, folder, last)
    partial.rmdir()


def move_files(source: Path, folder: Path, last: str) -> None:
    """Move the files of one folder into another of its disk, each in one go, the one named `last` last."""
    for path in sorted(source.iterdir(), key=lambda path: path.name == last):
        path.replace(folder / path.name)


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Write bytes to a temporary neighbour of `path`, which takes its place when the block succeeds.

    The neighbour has the process's number in its name, so that one that was not stopped in time disturbs no other.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None:  # with which alone an error shows its file; a full disk names none
            error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def shared_folder(name: str) -> Path:
    """`lm_eval_tasks` or `recipes`: a wheel has them within the package, a checkout beside it."""
    package = Path(__file__).parent
    installed = package / "share" / name
    return installed if installed.is_dir() else package.parent / name


def sha256_of(paths: Iterable[Path], read: Callable[[int], object] = lambda count: None) -> str:
    """SHA-256 of files one after the other, in hexadecimal digits; `read` is told how many bytes more were read."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                read(len(block))
    return digest.hexdigest()


def digest(value: object) -> str:
    """SHA-256 of a JSON value, in hexadecimal digits; the order of an object's keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stamp(path: Path) -> list[int]:
    """A file's bytes and the time of its last change, in nanoseconds: with others, it may hold something else."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, replacing an older one in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as file:
        file.write(text.encode())


def read_json(path: Path) -> Any:
    """The value of a UTF-8 file of JSON that a program wrote, as `write_json` does."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """Write texts as JSON lines with the one field `text`."""
    write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))


def flush(folder: Path) -> None:
    """Wait until all files below a folder are on the disk, so that what is written later says so truly."""
    if os.name != "posix":  # where a file that is open for reading cannot be flushed
        return
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path, output: Path, kind: str) -> Iterator[None]:
    """Hold a lock while the block runs, so that no two runs write to one output.

    Args:
        path: The lock's file, which is removed in the end.
        output: What `--output` says, made if it is not there, and removed if it is empty in the end; it is named in
            errors.
        kind: What the holder of the lock is called.

    Raises:
        UserError: if another process holds it, or the output cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    with writing(f"--output {output}"):
        output.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another {kind} is writing to --output {output}; wait for it or name another folder"
            ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # the innermost that holds something
            for folder in made:
                folder.rmdir()
