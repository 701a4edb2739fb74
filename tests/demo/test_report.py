"""The table, its files and the picture, from results as the steps leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from allocations import save_allocation
from neuronmoe_plugins.demo.report import TEXT_TITLES, read_results, save_report
from neuronmoe_plugins.files import write_json


@pytest.fixture
def demo_folder(tmp_path: Path) -> Path:
    for number, model in enumerate(("base", "stage1", "stage2")):
        values = {text: 1 + number + index / 10 for index, text in enumerate(TEXT_TITLES)}
        write_json(tmp_path / "evaluation" / model / "bits_per_byte.json", values)
    shares = {"help_el": {"0": 0.2, "3": 0.4}, "help_en": {"0": 0.5, "3": 1.0}}
    write_json(tmp_path / "routing.json", {"stage1": shares, "stage2": {**shares, "help_en": {"0": 0.9, "3": 0.9}}})
    save_allocation(tmp_path / "allocation.yaml", [3, 1, 1, 2], [2.0, 0.0, 0.0, 1.0])
    (tmp_path / "stage2").mkdir()
    weights = {"a": np.zeros((2, 3, 4), np.float32), "b": np.zeros((5, 1), np.float32)}
    save_file(weights, tmp_path / "stage2" / "adapter_model.safetensors")
    return tmp_path


def test_report(demo_folder: Path) -> None:
    results = read_results(
        demo_folder / "evaluation",
        demo_folder / "routing.json",
        demo_folder / "allocation.yaml",
        demo_folder,
        {"model": 0.5, "stage1": 6.0},
        None,
    )
    console = Console(record=True, width=120, quiet=False, file=(demo_folder / "console.txt").open("w"))

    save_report(results, demo_folder, console)

    markdown = (demo_folder / "demo.md").read_text(encoding="utf-8")
    assert "| bits per byte: held-out help, Greek | 1.000 | 2.000 | 3.000 |" in markdown
    assert "| bits per byte: UDHR, English | 1.300 | 2.300 | 3.300 |" in markdown
    assert "| tokens on expert 0: Greek | – | 30% | 30% |" in markdown
    assert "| tokens on expert 0: English | – | 75% | 90% |" in markdown
    assert "New experts: 3 (2 in layer 0, 1 in layer 3)" in markdown
    assert results.added_parameters == 29
    assert "Minutes: 6.5 (model 0.5, stage1 6.0)" in markdown
    assert "held-out help, Greek" in console.export_text()
    assert json.loads((demo_folder / "demo.json").read_text(encoding="utf-8"))["added_parameters"] == 29
    assert (demo_folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_extended_model_has_a_column_of_its_own(demo_folder: Path) -> None:
    write_json(demo_folder / "evaluation" / "extended" / "bits_per_byte.json", dict.fromkeys(TEXT_TITLES, 7.0))
    fits = {"before": {"tokens_per_word": 5.83}, "after": {"tokens_per_word": 2.02}}
    record = {"tokens": 1000, "corpora": [{"use": "learnt", **fits}]}
    write_json(demo_folder / "extended" / "neuronmoe_vocabulary.json", record)
    places = (demo_folder / "evaluation", demo_folder / "routing.json", demo_folder / "allocation.yaml", demo_folder)
    results = read_results(*places, {"model": 0.5}, demo_folder / "extended")

    save_report(results, demo_folder, Console(quiet=True))

    markdown = (demo_folder / "demo.md").read_text(encoding="utf-8")
    assert "| base | larger vocabulary | stage 1 | stage 2 |" in markdown
    assert "| bits per byte: held-out help, Greek | 1.000 | 7.000 | 2.000 | 3.000 |" in markdown
    assert "| tokens on expert 0: Greek | – | – | 30% | 30% |" in markdown
    assert "New tokens: 1,000; a Greek word of the training text has 2.02, and had 5.83." in markdown
