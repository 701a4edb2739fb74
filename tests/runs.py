"""What lm-eval writes: by real runs of its command, and made up with given values of items."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

DATE = "2026-03-05T10-00-00.000001"
Values = Mapping[str, Sequence[Any]]


def run_lm_eval(
    tasks: Path, model_args: str, names: str, output: Path, cache: Path, *options: str, model: str = "hf"
) -> None:
    """Run lm-eval's command in this process, where torch is loaded already."""
    import datasets
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks import TaskManager

    arguments = ["lm_eval", "run", "--model", model, "--model_args", model_args, "--device", "cpu", "--batch_size", "8"]
    arguments += ["--include_path", str(tasks), "--tasks", names, "--output_path", str(output), *options]
    # lm-eval's own tasks, which are not used, take ten seconds to index.
    without_defaults = partialmethod(TaskManager.__init__, include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(TaskManager, "__init__", without_defaults)
        cli_evaluate()


def results_of(run: Path) -> Path:
    """The results file of a run."""
    (path,) = run.rglob("results_*.json")
    return path


def samples_of(run: Path, task: str) -> Path:
    """The samples file of a run's task."""
    (path,) = run.rglob(f"samples_{task}_*.jsonl")
    return path


def load(path: Path) -> dict[str, Any]:
    """A JSON object."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def save_run(
    folder: Path,
    tasks: Mapping[str, Values],
    reported: Mapping[str, Mapping[str, float]] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    samples: bool = True,
    model_args: Mapping[str, str] | None = None,
) -> Path:
    """Write a run with these values of items.

    Args:
        folder: Where to.
        tasks: Task -> metric -> the items' values.
        reported: Task or group -> metric -> lm-eval's value, where it is not the mean over the items.
        groups: Group -> its tasks.
        samples: Whether samples were logged.
        model_args: lm-eval's.

    Returns:
        The results file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    means = {task: {name: _mean(items) for name, items in values.items()} for task, values in tasks.items()}
    values = means | {task: dict(given) for task, given in (reported or {}).items()}
    sizes = {task: len(next(iter(items.values()))) for task, items in tasks.items()}
    content = {
        "results": {task: {f"{name},none": value for name, value in own.items()} for task, own in values.items()},
        "group_subtasks": groups or {},
        "configs": {task: {"metric_list": [{"metric": name} for name in own]} for task, own in tasks.items()},
        "versions": dict.fromkeys(values, 1.0),
        "n-shot": dict.fromkeys(values, 0),
        "higher_is_better": {task: {name: not name.startswith("bits") for name in own} for task, own in values.items()},
        "n-samples": {task: {"original": size, "effective": size} for task, size in sizes.items()},
        "config": {"model": "hf", "model_args": dict(model_args or {"pretrained": "model"}), "limit": None},
        "model_name": (model_args or {}).get("peft", "model"),
        "task_hashes": {},
    }
    if samples:
        hashes = {task: _save_samples(folder, task, own) for task, own in tasks.items()}
        content["task_hashes"] = hashes
    path = folder / f"results_{DATE}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def _mean(items: Sequence[Any]) -> float:
    return sum(items) / len(items) if all(isinstance(item, int | float) for item in items) else 0.0


def _save_samples(folder: Path, task: str, values: Values) -> str:
    """Write a samples file; returns lm-eval's hash of it."""
    lines, hashes = [], []
    for number in range(len(next(iter(values.values())))):
        own = {name: f"{name} of {task} {number}" for name in ("doc_hash", "prompt_hash", "target_hash")}
        record = {"doc_id": number, "filter": "none", "metrics": list(values), **own}
        lines.append(json.dumps(record | {name: items[number] for name, items in values.items()}))
        hashes += own.values()
    (folder / f"samples_{task}_{DATE}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
