"""What a report is about: an analysis, the allocations made from it, and its experts; read and checked once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import read_json
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.pruning import Pruning
from neuronmoe_plugins.pruning.record import RECORD as PRUNING

if TYPE_CHECKING:
    from neuronmoe_plugins.specialisation import Specialisation
    from neuronmoe_plugins.specialisation.specialisation import LayerDrift

MAIN_ALLOCATION = "allocation.yaml"
# Recipes are YAML files too; only an allocation has this key at the start of a line.
ALLOCATION_KEY = re.compile(r"^num_experts\s*:", re.MULTILINE)
FOLDER = "specialisation"
RECORD = "specialisation.json"
NEEDED: dict[str, type | tuple[type, ...]] = {
    "model": str, "adapter": str, "num_layers": int, "languages": list, "threshold": (int, float), "missing": str,
    "min_sentences": int,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """The experts of the extended model.

    Attributes:
        folder: Where they were found.
        specialisation: Their neurons and the routing.
        drift: How the model's own neurons changed; None if not measured.
    """

    folder: Path
    specialisation: Specialisation
    drift: Sequence[LayerDrift] | None

    @property
    def path(self) -> Path:
        """The record, for messages."""
        return self.folder / RECORD


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
        layermoe_budget: What LayerMoE is to share out, to be compared with; None if that was not asked for.
        prunings: What `neuronmoe prune` did, by the names of its folders in `home`.
    """

    home: Path
    folder: Path
    summary: dict[str, Any]
    neurons: Sequence[Neuron]
    allocations: Mapping[str, Allocation]
    measured: Measured | None = None
    layermoe_budget: int | None = None
    prunings: Mapping[str, Pruning] = field(default_factory=dict)

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

    Also `folder`/specialisation, or what `neuronmoe specialise` wrote into `folder` itself, and the pruned adapters in
    `folder`.

    Raises:
        UserError: there is no complete analysis, or an allocation, specialisation or pruning is broken or for another
            model.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one that `neuronmoe analyze` wrote, or the one that it is in")
    inner = folder / "analysis"
    analysis_folder = inner if inner.is_dir() else folder
    analysis = Analysis.load(analysis_folder)
    paths = sorted(folder.glob("*.yaml"), key=lambda path: (path.name != MAIN_ALLOCATION, path.name))
    allocations = {
        path.name: Allocation.load(path)
        for path in paths
        if path.name == MAIN_ALLOCATION or ALLOCATION_KEY.search(path.read_text(encoding="utf-8", errors="replace"))
    }
    measured = read_measured(folder)
    prunings = {path.parent.name: Pruning.load(path.parent) for path in sorted(folder.glob(f"*/{PRUNING}"))}
    run = Run(folder, analysis_folder, analysis.summary, analysis.neurons, allocations, measured, prunings=prunings)
    for name, allocation in run.allocations.items():
        _require_layers(run, folder / name, len(allocation.num_experts), "allocate")
    if measured is not None:
        _require_layers(run, measured.path, int(measured.specialisation.settings["num_layers"]), "specialise")
    for name, pruning in prunings.items():
        _require_layers(run, folder / name / PRUNING, pruning.num_layers, "prune")
    return run


def _require_layers(run: Run, path: Path, layers: int, command: str) -> None:
    """Raise `UserError` unless a file is for as many layers as the analysis."""
    if layers != run.num_layers:
        raise UserError(
            f"{path} is for {layers} layers, the analysis in {run.folder} for {run.num_layers}; move it away or write "
            f"it again with `neuronmoe {command}`"
        )


def read_measured(home: Path) -> Measured | None:
    """Read `home`/specialisation, or `home` itself; None where neither has a record.

    Raises:
        UserError: if the record, its table or the drift beside it is damaged or of another run.
    """
    folder = next((own for own in (home / FOLDER, home) if (own / RECORD).exists()), None)
    if folder is None:
        return None
    # These need torch, which takes seconds to import.
    from neuronmoe_plugins.specialisation import Specialisation
    from neuronmoe_plugins.specialisation.specialisation import load_drift

    specialisation = Specialisation.load(folder)
    _require_complete(folder / RECORD, specialisation)
    drift = load_drift(folder)
    if drift is not None:
        _require_same_adapter(folder, specialisation, drift)
    return Measured(folder, specialisation, drift)


def _require_complete(path: Path, specialisation: Specialisation) -> None:
    """Raise `UserError` if the record lacks a setting, or what is shown of an expert or layer for some language."""
    settings: Any = specialisation.settings
    for key, kind in NEEDED.items():
        if not isinstance(settings, dict) or not isinstance(settings.get(key), kind):
            raise UserError(f"{path} has no setting {key!r}; run `neuronmoe specialise` again")
    languages, layers = set(specialisation.languages), range(settings["num_layers"])
    routed = {(row.layer, row.language) for row in specialisation.routing}
    rows = {(row.layer, row.expert, row.language) for row in specialisation.experts}
    places = {(layer, expert) for layer, expert, _ in rows}
    fits = (
        routed == {(layer, language) for layer, _ in places for language in languages}
        and rows == {(*place, language) for place in places for language in languages}
        and all(layer in layers for layer, _ in places)
    )
    if not fits or not rows:
        raise UserError(f"{path} does not have every expert for every language; run `neuronmoe specialise` again")


def _require_same_adapter(folder: Path, specialisation: Specialisation, drift: Sequence[LayerDrift]) -> None:
    """Raise `UserError` for the drift of an earlier run, which a later one without `--compare` leaves there."""
    from neuronmoe_plugins.specialisation.specialisation import DRIFT, EXTENDED

    settings = specialisation.settings
    places = {(layer, language) for layer in range(settings["num_layers"]) for language in specialisation.languages}
    path = folder / EXTENDED / "summary.json"
    try:
        summary = read_json(path) if path.exists() else settings
        same = all(summary[key] == settings[key] for key in ("model", "adapter"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; run `neuronmoe specialise --compare base` again") from error
    if not same or {(row.layer, row.language) for row in drift} != places:
        raise UserError(
            f"{folder / DRIFT} is of another model or adapter than {folder / RECORD}; delete it or run "
            "`neuronmoe specialise --compare base` again"
        )
