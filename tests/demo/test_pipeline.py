"""The demo's steps, with stand-ins for the programs that they start and for what they measure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuronmoe_plugins.demo import pipeline
from neuronmoe_plugins.demo.pipeline import Demo, DemoSettings
from neuronmoe_plugins.steps import run_steps


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was started and measured, with the models and adapters that it got, in order."""
    lines: list[str] = []

    def short(value: object) -> str:
        return str(value).replace(f"{tmp_path}/", "")

    def run_command(command: Sequence[str], log: Path, **_: Any) -> None:
        words = list(map(short, command))
        options = dict(pairwise(words))
        named = [options[flag] for flag in ("--model", "--output", "--tokens") if flag in options]
        lines.append(" ".join([log.stem, *named, *(word for word in words if word.startswith("new_token"))]))
        for name in ("extended", "analysis", "allocation.yaml", "report.html", f"training/{log.stem}.yaml"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for stage in ("stage1", "stage2"):
            (tmp_path / "training" / f"{stage}.yaml").mkdir(exist_ok=True)
            (tmp_path / "training" / stage / "adapter_model.safetensors").mkdir(parents=True, exist_ok=True)

    def measure(model: Path, adapter: Path | None, *_: Any) -> None:
        lines.append(f"evaluate {short(model)} {short(adapter)}")
        (tmp_path / "evaluation" / _[2].name).mkdir(parents=True, exist_ok=True)

    def expert0_share(model: Path, adapter: Path, *_: Any) -> dict[str, float]:
        lines.append(f"routing {short(model)} {short(adapter)}")
        return {}

    monkeypatch.setattr(pipeline, "run_command", run_command)
    monkeypatch.setattr(pipeline, "measure_bits_per_byte", measure)
    monkeypatch.setattr(pipeline, "measure_expert0_share", expert0_share)
    for name in ("model", "texts"):
        monkeypatch.setattr(Demo, f"fetch_{name}", lambda demo, name=name: (demo.output / name).mkdir(exist_ok=True))
    return lines


def run(folder: Path, vocabulary: int | None) -> None:
    settings = DemoSettings(dtype="float32", vocabulary=vocabulary)
    run_steps(Demo(folder, settings).steps(), folder / "steps", Console(quiet=True))


def test_all_that_follows_a_larger_vocabulary_is_done_with_that_model(said: list[str], tmp_path: Path) -> None:
    run(tmp_path, 1000)

    assert said == [
        "vocabulary model extended 1000",
        "evaluate model None",
        "evaluate extended None",
        "analyze extended analysis",
        "allocate allocation.yaml",
        "recipe extended training",
        "stage1 new_token_learning_rate=0.005",
        "evaluate extended training/stage1",
        "stage2",
        "evaluate extended training/stage2",
        "routing extended training/stage1",
        "routing extended training/stage2",
        "report",
    ]


def test_without_it_no_step_is_kept_that_had_it(said: list[str], tmp_path: Path) -> None:
    run(tmp_path, 1000)
    said.clear()

    run(tmp_path, None)

    assert said[0] == "analyze model analysis"
    assert "recipe model training" in said and "stage1" in said
    said.clear()
    run(tmp_path, 900)
    assert said[0] == "vocabulary model extended 900"
    assert "stage1 new_token_learning_rate=0.005" in said
