"""A server of forked processes, and the commands that it stands for."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent


@contextmanager
def forked_commands(
    folder: Path, modules: Sequence[str], names: Sequence[str], python: Path = Path(sys.executable)
) -> Iterator[Path]:
    """Commands that start as forks of a process which has imported these modules, until the end of the block.

    Args:
        folder: A new folder for them, whose name is short.
        modules: What takes long to import.
        names: Of commands beside this Python, or beside the other.
        python: Runs them; its packages are theirs.

    Yields:
        The folder with the commands and `python`, to be put first on PATH; torchrun starts its workers in the same way.
    """
    address = str(folder / "server")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    commands = folder / "bin"
    commands.mkdir()
    for name in ("python", *names):
        tool = python.with_name(name) if python.with_name(name).exists() else TOOLS / name
        words = [sys.executable, "-IS", str(HERE / "client.py"), address, "" if name == "python" else str(tool)]
        (commands / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (commands / name).chmod(0o755)
    with listener, (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(python), str(HERE / "server.py"), str(listener.fileno()), *modules],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        yield commands
    finally:
        process.communicate(timeout=60)


def commands_environment(commands: Path | None = None) -> dict[str, str]:
    """The environment in which these commands, and the workers of torchrun, are forked, or else are those of Python."""
    forked = {} if commands is None else {"PYTHON_EXEC": str(commands / "python")}
    folders = [*([] if commands is None else [commands]), TOOLS, os.environ["PATH"]]
    return os.environ | {"PATH": os.pathsep.join(map(str, folders))} | forked
