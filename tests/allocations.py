"""Allocations as `neuronmoe allocate` would have written them, and what it reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.cli import app
from neuronmoe_plugins.neurons.analysis import write_neurons
from neuronmoe_plugins.neurons.metrics import Neuron

TABLES: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "paper_tables.json").read_text())


def make_allocation(num_experts: Sequence[int], layer_scores: Sequence[float] = ()) -> Allocation:
    """An allocation of English and Greek with these experts."""
    return Allocation(
        num_experts=list(num_experts),
        layer_scores=list(layer_scores),
        min_experts=1,
        max_experts=max(num_experts),
        rounding="floor",
        strategy="neuron-diversity",
        source="en",
        targets=["el"],
        scores_from="scores.json",
    )


def save_allocation(path: Path, num_experts: Sequence[int], layer_scores: Sequence[float] = (), **changes: Any) -> None:
    """Write it as allocation.yaml."""
    replace(make_allocation(num_experts, layer_scores), **changes).save(path)


def save_analysis(
    folder: Path, places: Mapping[str, Sequence[tuple[int, str, int]]], num_layers: int, **more: Any
) -> Path:
    """Write an analysis whose languages have neurons at these (layer, module, unit); `more` joins the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "neurons.parquet"
    write_neurons(table, [Neuron(language, *place, 0.9) for language, own in places.items() for place in own])
    summary = {
        "languages": list(places),
        "num_layers": num_layers,
        "units_per_module": {"mlp.up_proj": 48, "mlp.down_proj": 32},
        "neuron_identity": "module",
        "files": {table.name: hashlib.sha256(table.read_bytes()).hexdigest()},
    }
    (folder / "summary.json").write_text(json.dumps(summary | more))
    return folder


def save_scores(folder: Path, content: object) -> Path:
    """Write scores.json: a text as it is, anything else as JSON."""
    path = folder / "scores.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run_allocate(*arguments: object) -> Result:
    """Run `neuronmoe allocate`."""
    return CliRunner().invoke(app, ["allocate", *map(str, arguments)])


def allocated(folder: Path, *arguments: object) -> Allocation:
    """Run `neuronmoe allocate` into `folder` and read what it wrote."""
    result = run_allocate(*arguments, "--output", folder / "allocation.yaml")
    assert result.exit_code == 0, (result.output, result.exception)
    return Allocation.load(folder / "allocation.yaml")
