"""What lm-eval writes: by real runs of its command, and made up with given values of items."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest


def run_lm_eval(tasks: Path, model_args: str, names: str, output: Path, cache: Path, *options: str) -> None:
    """Run lm-eval's command in this process, where torch is loaded already."""
    import datasets
    from lm_eval.__main__ import cli_evaluate

    arguments = ["lm_eval", "run", "--model", "hf", "--model_args", model_args, "--device", "cpu", "--batch_size", "8"]
    arguments += ["--include_path", str(tasks), "--tasks", names, "--output_path", str(output), *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
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
    return dict(json.loads(path.read_text(encoding="utf-8")))
