"""How a training ends that was interrupted, or could not write: one line that says what of it is left."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronmoe_plugins.integrations.llamafactory.checkpoints import checkpoints, defect, launch_of

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How safetensors and torch's archives say it, which write by themselves.
IN_WORDS = {
    "os error 28": "No space left on device",
    "inline_container.cc": "torch could not write a whole file (is the disk full?)",
}


def explain_end(training_args: Any, error: BaseException) -> str | None:
    """What ended a training, and where the same command goes on.

    Args:
        training_args: The host's training arguments.
        error: What nobody caught.

    Returns:
        One line; None for an error of another kind.
    """
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {_what_is_left(training_args)}"
    line = next((line for one in _chain(error) if (line := _write_error(one, training_args.output_dir))), None)
    return None if line is None else f"{line}; {_what_is_left(training_args)}"


def _what_is_left(training_args: Any) -> str:
    launch = launch_of(training_args)
    found = checkpoints(Path(training_args.output_dir))
    last = next((folder.name for folder in found.values() if defect(folder, launch) is None), None)
    if last is None:
        return "there is no whole checkpoint, the same command starts from the beginning"
    if getattr(training_args, "overwrite_output_dir", False):
        return f"{last} is whole, and without overwrite_output_dir the same command goes on from it"
    return f"the same command goes on from {last}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _write_error(error: BaseException, output_dir: str) -> str | None:
    place, reason = f"output_dir: {output_dir}", None
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        place, reason = error.filename or place, error.strerror
    reason = reason or next((reason for words, reason in IN_WORDS.items() if words in str(error)), None)
    return None if reason is None else f"{place} cannot be written: {reason}"
