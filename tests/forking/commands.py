"""A server of forked processes, and the commands that it stands for."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuronmoe_plugins.study.forks import fork_server

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent


@contextmanager
def forked_commands(
    folder: Path, modules: Sequence[str], names: Sequence[str], python: Path = Path(sys.executable)
) -> Iterator[Path]:
    """Commands that start as forks of a process which has imported these modules, until the end of the block.

    Args:
        folder: A new folder for them.
        modules: What takes long to import.
        names: Of commands beside this Python, or beside the other.
        python: Runs them; its packages are theirs.

    Yields:
        The folder with the commands and `python`, to be put first on PATH; torchrun starts its workers in the same way.
    """
    commands = folder / "bin"
    commands.mkdir()
    # Modules of this folder are imported, too, but are none of the programs'.
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with (
        (folder / "server.log").open("wb") as log,
        fork_server(modules, os.environ | variables, python, log) as server,
    ):
        for name in ("python", *names):
            tool = python.with_name(name) if python.with_name(name).exists() else TOOLS / name
            script = "" if name == "python" else str(tool)
            words = [sys.executable, "-IS", str(HERE / "client.py"), server.address, script]
            (commands / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            (commands / name).chmod(0o755)
        yield commands


def commands_environment(commands: Path | None = None) -> dict[str, str]:
    """The environment in which these commands, and the workers of torchrun, are forked, or else are those of Python."""
    forked = {} if commands is None else {"PYTHON_EXEC": str(commands / "python")}
    folders = [*([] if commands is None else [commands]), TOOLS, os.environ["PATH"]]
    return os.environ | {"PATH": os.pathsep.join(map(str, folders))} | forked
