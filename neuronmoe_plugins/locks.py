"""Keeps two runs from writing to one output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from neuronmoe_plugins.errors import UserError


@contextmanager
def locked(path: Path, output: Path, kind: str) -> Iterator[None]:
    """Hold a lock while the block runs.

    Args:
        path: The lock's file, which is removed in the end.
        output: What `--output` says, made if it is not there; it is named in errors.
        kind: What the holder of the lock is called.

    Raises:
        UserError: if another process holds it, or the output cannot be written.
    """
    lock = FileLock(path, timeout=0)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another {kind} is writing to --output {output}; wait for it or name another folder"
        ) from error
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
