"""Run other programs: their output goes to a log file, and a failure becomes one clear line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neuronmoe_plugins.errors import UserError


def run_command(
    command: Sequence[str | Path],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
) -> None:
    """Run a program to its end; programs of this Python's environment are found also when it is not activated.

    Args:
        command: Program and arguments.
        log: File that receives the command line and all that the program prints; overwritten.
        cwd: Working directory.
        env: Variables set on top of this process's environment.
        hint: What the user can do when the program is missing or fails; ends the error message.

    Raises:
        UserError: if the program is not installed or exits with another code than 0.
    """
    words = [str(word) for word in command]
    advice = f"; {hint}" if hint else ""
    variables = {**os.environ, **(env or {})}
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables.get("PATH", os.defpath)])
    program = shutil.which(words[0], path=variables["PATH"])
    if program is None:
        raise UserError(f"`{words[0]}` is not installed{advice}")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(words)}\n")
        output.flush()
        process = subprocess.run(
            [program, *words[1:]],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if process.returncode != 0:
        raise UserError(
            f"`{shlex.join(words[:2])}` failed with exit code {process.returncode}: {_last_line(log)} "
            f"(all its output is in {log}){advice}"
        )


def _last_line(log: Path) -> str:
    """The last line of a log that holds more than blanks."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:]
