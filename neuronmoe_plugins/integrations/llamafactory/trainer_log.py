"""trainer_log.jsonl of a run that is resumed: every step once."""

from __future__ import annotations

import json
from pathlib import Path

from neuronmoe_plugins.files import write_text


def keep_until(log: Path, step: int) -> None:
    """Drop what the run will write again: the lines after a step, the summary at the end, and a line cut short.

    Args:
        log: A trainer_log.jsonl, which need not exist; replaced in one go.
        step: Step of the checkpoint that the run goes on from; 0 if it starts from the beginning.
    """
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _stays(line, step)]
    if kept != lines:
        write_text(log, "".join(f"{line}\n" for line in kept))


def _stays(line: str, step: int) -> bool:
    try:
        entry = json.loads(line)
    except ValueError:
        return False
    at = entry["current_steps"]
    return at < step or (at == step > 0 and ("loss" in entry or "eval_loss" in entry))
