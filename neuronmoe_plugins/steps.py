"""Run steps in order, remember which are done, and go on from there when the command is repeated.

Also the programs that steps run: their output goes to a log file, and a failure becomes one clear line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json, write_json


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: Unique; also the name of the step's stamp.
        action: Does the work; raising leaves the step undone.
        outputs: Files or folders that must be there after the action.
        parameters: JSON values on which the outputs depend; with other values the step is run again.
    """

    name: str
    action: Callable[[], None]
    outputs: Sequence[Path]
    parameters: dict[str, object] = field(default_factory=dict)


def run_steps(steps: Sequence[Step], stamps: Path, console: Console) -> dict[str, float]:
    """Run all steps that are not done yet; the first one that is not done undoes all after it.

    A step is done when its stamp has its parameters and its outputs exist.

    Args:
        steps: In order; each may use the outputs of those before it.
        stamps: Folder of one JSON file per finished step.
        console: Shows the progress.

    Returns:
        Step name -> minutes that it took when it ran.
    """
    done = 0
    while done < len(steps) and state_of(steps[done], stamps) == "done":
        console.print(f"[dim]{steps[done].name}: done before[/dim]")
        done += 1
    for step in steps[done:]:
        _stamp(step, stamps).unlink(missing_ok=True)
    for step in steps[done:]:
        _run(step, stamps, console)
    return {step.name: minutes_of(step, stamps) for step in steps}


def _stamp(step: Step, stamps: Path) -> Path:
    """The file that says that a step is done."""
    return stamps / f"{step.name}.json"


def state_of(step: Step, stamps: Path) -> str:
    """Whether a step is `done`, `stale`, as it was done with other parameters, or `left`."""
    try:
        found = read_json(_stamp(step, stamps))["parameters"]
    except FileNotFoundError:  # also of a run that another thread begins again just now
        return "left"
    # Compared as JSON, in which tuples are lists.
    if found != json.loads(json.dumps(step.parameters)):
        return "stale"
    return "done" if all(output.exists() for output in step.outputs) else "left"


def minutes_of(step: Step, stamps: Path) -> float:
    """What a step took that is done."""
    return float(read_json(_stamp(step, stamps))["minutes"])


def _run(step: Step, stamps: Path, console: Console) -> None:
    """Run one step and stamp it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    start = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(step.name)
        step.action()
    missing = [str(output) for output in step.outputs if not output.exists()]
    if missing:
        raise FileNotFoundError(f"step {step.name!r} ended without writing {', '.join(missing)}")
    minutes = (time.monotonic() - start) / 60
    write_json(_stamp(step, stamps), {"parameters": step.parameters, "minutes": minutes})
    console.print(f"{step.name}: {minutes:.1f} min")


class Program(AbstractContextManager[Any], Protocol):
    """A program that runs; at the end of its block it has ended."""

    def wait(self) -> int:
        """Its exit code, in the end; or with a minus the signal that ended it."""

    def terminate(self) -> None:
        """Ask it to end."""


# Starts a program with its arguments, in a folder, with all of its variables, and a file for all that it prints.
Start = Callable[[Sequence[str], "Path | None", Mapping[str, str], IO[str]], Program]

_running: set[Program] = set()


def start_process(words: Sequence[str], cwd: Path | None, variables: Mapping[str, str], output: IO[str]) -> Program:
    """Start a program as a process of its own."""
    return subprocess.Popen(
        words, cwd=cwd, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )


def stop_commands() -> None:
    """End the programs that other threads run, which then raise."""
    for process in list(_running):
        process.terminate()


def run_command(
    command: Sequence[str | Path],
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
    start: Start = start_process,
) -> None:
    """Run a program to its end; programs of this Python's environment are found also when it is not activated.

    Args:
        command: Program and arguments.
        log: File that receives the command line and all that the program prints; overwritten.
        cwd: Working directory.
        env: Variables set on top of this process's environment.
        hint: What the user can do when the program is missing or fails; ends the error message.
        start: How it is started.

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
        code = _run_to_its_end(start([program, *words[1:]], cwd, variables, output))
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next(line.strip() for line in reversed(lines) if line.strip())  # there is the command line at least
        raise UserError(
            f"`{shlex.join(words[:2])}` failed with exit code {code}: {last[-300:]} "
            f"(all its output is in {log}){advice}"
        )


def _run_to_its_end(program: Program) -> int:
    with program:
        _running.add(program)
        try:
            return program.wait()
        except BaseException:  # as of an interrupt, which the program has got, too
            program.terminate()
            raise
        finally:
            _running.discard(program)
