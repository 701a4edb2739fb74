"""Run steps in order, remember which are done, and go on from there when the command is repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from neuronmoe_plugins.files import write_json


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
    while done < len(steps) and _minutes_if_done(steps[done], stamps) is not None:
        console.print(f"[dim]{steps[done].name}: done before[/dim]")
        done += 1
    for step in steps[done:]:
        _stamp(step, stamps).unlink(missing_ok=True)
    for step in steps[done:]:
        _run(step, stamps, console)
    return {step.name: json.loads(_stamp(step, stamps).read_text(encoding="utf-8"))["minutes"] for step in steps}


def _stamp(step: Step, stamps: Path) -> Path:
    """The file that says that a step is done."""
    return stamps / f"{step.name}.json"


def _minutes_if_done(step: Step, stamps: Path) -> float | None:
    """Minutes that a step took, or None if it has to run."""
    path = _stamp(step, stamps)
    if not path.is_file():
        return None
    stamp = json.loads(path.read_text(encoding="utf-8"))
    # Compared as JSON, in which tuples are lists.
    same = stamp["parameters"] == json.loads(json.dumps(step.parameters))
    return stamp["minutes"] if same and all(output.exists() for output in step.outputs) else None


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
