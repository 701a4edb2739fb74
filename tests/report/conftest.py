"""The report on the paper's counts, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from paper_analysis import read_page, save_paper_allocation, write_analysis
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app
from neuronmoe_plugins.report.run import Run, read_run


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with analysis, allocation, a recipe that is none, and the report on them."""
    folder = tmp_path_factory.mktemp("run")
    write_analysis(folder / "analysis")
    save_paper_allocation(folder / "allocation.yaml")
    (folder / "stage1.yaml").write_text("ada_moe_num_experts_list: [6, 2]\n")
    result = CliRunner().invoke(app, ["report", str(folder), "--layermoe-budget", "70"])
    assert result.exit_code == 0, result.output
    assert result.output == f"Wrote {folder / 'report.html'} and 12 files in {folder / 'figures'}\n"
    return folder


@pytest.fixture(scope="session")
def page(paper_run: Path) -> ElementTree.Element:
    """The report's page; it is well-formed, so that an XML parser reads it."""
    return read_page(paper_run / "report.html")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Writes an analysis, with changes to its summary, and reads it with what allocations there are."""

    def make(**changes: Any) -> Run:
        budget = changes.pop("layermoe_budget", None)
        write_analysis(tmp_path / "analysis", **changes)
        return replace(read_run(tmp_path), layermoe_budget=budget)

    return make
