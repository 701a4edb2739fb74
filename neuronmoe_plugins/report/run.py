"""What a report is about: an analysis, the allocations made from it, and its experts; read and checked once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.table import Neuron
from neuronmoe_plugins.report.measured import Measured, read_measured

MAIN_ALLOCATION = "allocation.yaml"
# Recipes are YAML files too; only an allocation has this key at the start of a line.
ALLOCATION_KEY = re.compile(r"^num_experts\s*:", re.MULTILINE)


@dataclass(frozen=True)
class Run:
    """An analysis with its allocations, and what the experts of the extended model specialise in.

    Attributes:
        home: Where the allocations are.
        folder: Of the analysis; `home` itself, or within it.
        summary: The content of `summary.json`.
        neurons: The language-specific neurons.
        allocations: By file name; `allocation.yaml` first.
        measured: What `neuronmoe specialise` wrote; None if it did not.
    """

    home: Path
    folder: Path
    summary: dict[str, Any]
    neurons: Sequence[Neuron]
    allocations: Mapping[str, Allocation]
    measured: Measured | None = None

    @property
    def languages(self) -> list[str]:
        """In the order of the corpora."""
        return list(self.summary["languages"])

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.summary["num_layers"])

    def lacks(self, *keys: str) -> list[str]:
        """A sentence for the reader if the summary was written without some of these keys, else nothing."""
        missing = [f"“{key}”" for key in keys if key not in self.summary]
        if not missing:
            return []
        return [f"This analysis was written without {', '.join(missing)}; run “neuronmoe analyze” again to see this."]


def read_run(folder: Path) -> Run:
    """Read `folder`/analysis, or `folder` itself where it is an analysis, and the allocations in `folder`/*.yaml.

    Also `folder`/specialisation, or what `neuronmoe specialise` wrote into `folder` itself.

    Raises:
        UserError: there is no complete analysis, or an allocation or specialisation is broken or for another model.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one that `neuronmoe analyze` wrote, or the one that it is in")
    inner = folder / "analysis"
    analysis_folder = inner if inner.is_dir() else folder
    analysis = Analysis.load(analysis_folder)
    allocations, measured = _read_allocations(folder), read_measured(folder)
    run = Run(folder, analysis_folder, analysis.summary, analysis.neurons, allocations, measured)
    for name, allocation in run.allocations.items():
        if len(allocation.num_experts) != run.num_layers:
            raise UserError(
                f"{folder / name} is for {len(allocation.num_experts)} layers, the analysis in {analysis_folder} for "
                f"{run.num_layers}; move it away or write it again with `neuronmoe allocate`"
            )
    if measured is not None and measured.num_layers != run.num_layers:
        raise UserError(
            f"{measured.path} is for {measured.num_layers} layers, the analysis in {analysis_folder} for "
            f"{run.num_layers}; move it away or write it again with `neuronmoe specialise`"
        )
    return run


def _read_allocations(folder: Path) -> dict[str, Allocation]:
    paths = sorted(folder.glob("*.yaml"), key=lambda path: (path.name != MAIN_ALLOCATION, path.name))
    return {path.name: Allocation.load(path) for path in paths if path.name == MAIN_ALLOCATION or _is_allocation(path)}


def _is_allocation(path: Path) -> bool:
    return ALLOCATION_KEY.search(path.read_text(encoding="utf-8", errors="replace")) is not None
