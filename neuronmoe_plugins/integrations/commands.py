"""How the hosts' commands end on bad input: one line on standard error and exit code 2, as `neuronmoe` does.

A training that was interrupted ends with 130.

Only exceptions that nobody caught are concerned, and only in a host's own commands: a program that calls the host
gets the exception. It imports nothing heavy, since torchrun's own process uses it, too.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, TracebackType
from typing import Any

import wrapt

from neuronmoe_plugins.errors import UserError, one_line

# Command -> names that the path of its code has.
COMMANDS = {
    "llamafactory-cli": ("llamafactory", "launcher.py"),
    "lm_eval": ("lm_eval", "_cli"),
    "vllm": ("vllm", "entrypoints", "cli"),
}
EXIT_CODE, INTERRUPTED = 2, 130
# Names a folder in which workers leave a file for every error that they have reported.
REPORTS = "NEURONMOE_REPORTED_ERRORS"

# What torchrun's agent ends with after its workers did, or when it was interrupted.
AGENTS_ERRORS = ("ChildFailedError", "SignalException")
# Command -> what says of an error of the host itself which bad input it means, or what stopped it, if anything.
explanations: dict[str, Callable[[BaseException], str | None]] = {}
# Command -> what refuses the arguments of its command line, before there are workers, and gives the `moe` run, if any.
argument_checks: dict[str, Callable[[], object | None]] = {}

_installed = False


def extend_launcher(module: ModuleType) -> None:
    """Post-import hook of `llamafactory.launcher`, which starts torchrun by `subprocess.run`."""
    end_in_one_line()
    module.subprocess = _WorkersSubprocess(module.subprocess)  # type: ignore[attr-defined]


def extend_torchrun(_module: ModuleType) -> None:
    """Post-import hook of `torch.distributed.run`, which the agent of the workers runs."""
    end_in_one_line()


def end_in_one_line() -> None:
    """Let bad input that nobody caught end the process in one line and exit code 2; the rest stays as it is."""
    global _installed
    if not _installed:
        _installed = True
        sys.excepthook = partial(_excepthook, sys.excepthook)


def _excepthook(
    previous: Callable[..., Any], kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    command = _command(traceback)
    message = None if command is None else _explained(command, error)
    if message is not None:
        _report(f"{command}: {message}\n")
    elif not (kind.__name__ in AGENTS_ERRORS and _workers_reported(os.environ.get(REPORTS))):
        previous(kind, error, traceback)
        return
    # The interpreter exits with the code of a SystemExit from here, after its usual clean-up.
    raise SystemExit(INTERRUPTED if kind.__name__ in ("KeyboardInterrupt", "SignalException") else EXIT_CODE)


def _explained(command: str, error: BaseException) -> str | None:
    """The line that says what is wrong with the user's input, or what stopped a run; None for anything else."""
    explain = explanations.get(command)
    line = one_line(error) if isinstance(error, UserError) else explain(error) if explain is not None else None
    return line if line is None or isinstance(error, KeyboardInterrupt) else f"error: {line}"


def _command(traceback: TracebackType | None) -> str | None:
    """The host's command that the exception went through, which workers run, too."""
    while traceback is not None:
        parts = Path(traceback.tb_frame.f_code.co_filename).parts
        for command, names in COMMANDS.items():
            if all(name in parts for name in names):
                return command
        traceback = traceback.tb_next
    return None


def _report(line: str) -> None:
    """Write a line, unless another worker of this node has written the same.

    The folder that the node's workers share is the launcher's, or else torchrun's own.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    folder = Path(os.environ[REPORTS]) if REPORTS in os.environ else error_file and Path(error_file).parents[1]
    if folder and folder.is_dir():
        try:
            (folder / hashlib.sha256(line.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return
    # In a process of a group torch's own hook calls this one with another sys.stderr, which is lost when that exits.
    stream = sys.__stderr__ or sys.stderr
    stream.write(line)
    stream.flush()


def _workers_reported(folder: str | None) -> bool:
    return folder is not None and any(Path(folder).iterdir())


class _WorkersSubprocess(wrapt.ObjectProxy):  # type: ignore[misc]
    """The module `subprocess` for the launcher: bad input ends the command before there are workers, or with theirs."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for `subprocess.run`, which the launcher calls with `env` and `check`."""
        is_moe = _check_arguments()
        with TemporaryDirectory(prefix="neuronmoe_") as folder, _left_to_workers(is_moe) as interrupts:
            kwargs["env"] = {**(kwargs.get("env") or os.environ), REPORTS: folder}
            try:
                return self.__wrapped__.run(*args, **kwargs)
            except subprocess.CalledProcessError:
                if _workers_reported(folder):
                    raise SystemExit(INTERRUPTED if interrupts else EXIT_CODE) from None
                raise


@contextmanager
def _left_to_workers(is_moe: bool) -> Iterator[list[int]]:
    """Leave an interrupt to torchrun, which gets it too: the launcher would kill it, and leave its workers running."""
    interrupts: list[int] = []
    if not is_moe or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, lambda number, _frame: interrupts.append(number))
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _check_arguments() -> bool:
    """Check the arguments of a `moe` run once, as every worker would; others do not pay for the imports."""
    words = sys.argv[1:]
    config = Path(words[0]) if words else Path()
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    if not any("moe" in part for part in (text, *words)):
        return False
    import llamafactory.hparams.parser  # noqa: F401 (its hook names the check)

    check = argument_checks.get("llamafactory-cli")
    return check is not None and check() is not None
