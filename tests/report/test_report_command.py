"""`neuronmoe report` on what is no complete run: one line that says what to do, and an earlier report untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paper_analysis import COUNTS, save_paper_allocation, write_analysis
from typer.testing import CliRunner

from allocations import save_allocation
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.report.run import read_run


def report(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    write_analysis(folder / "analysis")
    (folder / "report.html").write_text("mine")
    return folder


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            remove("analysis/summary.json"),
            "analysis holds no analysis (no summary.json); run `neuronmoe analyze`",
        ),
        (remove("analysis/neurons.parquet"), "neurons.parquet is not a neuron table"),
        (write("analysis/summary.json", '{"languages": ["en"'), "summary.json is not JSON (Expecting "),
        (write("analysis/neurons.parquet", "half"), "neurons.parquet is not a neuron table"),
        (write("allocation.yaml", "num_experts: [6, 2"), "allocation.yaml is not YAML"),
        (write("allocation.yaml", "stage: 1"), "allocation.yaml lacks "),
        (write("other.yaml", "num_experts: [6, 2]"), "other.yaml lacks "),
        (
            lambda folder: save_allocation(folder / "allocation.yaml", [2] * 27),
            "allocation.yaml is for 27 layers",
        ),
    ],
)
def test_a_broken_run_is_refused(run_folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(run_folder)
    result = report(run_folder)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert (run_folder / "report.html").read_text() == "mine"
    assert not (run_folder / "figures").exists()


def test_no_folder_and_a_folder_without_analysis(tmp_path: Path) -> None:
    assert "none is no folder; name the one that `neuronmoe analyze` wrote" in str(report(tmp_path / "none").exception)
    assert "holds no analysis" in str(report(tmp_path).exception)


def test_output_that_cannot_be_written(run_folder: Path) -> None:
    (run_folder / "figures").write_text("a file")
    message = str(report(run_folder).exception)
    assert message.startswith(f"--output {run_folder / 'report.html'} cannot be written: ")
    assert (run_folder / "report.html").read_text() == "mine"


def test_an_analysis_folder_is_a_run_of_its_own(tmp_path: Path) -> None:
    write_analysis(tmp_path / "en-el")
    save_paper_allocation(tmp_path / "en-el" / "allocation.yaml")
    run = read_run(tmp_path / "en-el")
    assert run.home == run.folder == tmp_path / "en-el"
    assert list(run.allocations) == ["allocation.yaml"]
    assert run.languages == list(COUNTS)


def test_allocations_are_told_from_recipes(run_folder: Path) -> None:
    for name in ("b.yaml", "allocation.yaml", "a.yaml"):
        save_paper_allocation(run_folder / name)
    (run_folder / "stage1.yaml").write_text("ada_moe_num_experts_list: [6, 2]\nmoe_num_experts: 2\n")
    assert list(read_run(run_folder).allocations) == ["allocation.yaml", "a.yaml", "b.yaml"]
