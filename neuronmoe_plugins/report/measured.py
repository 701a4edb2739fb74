"""What `neuronmoe specialise` wrote, read and checked for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.specialisation import Specialisation
    from neuronmoe_plugins.specialisation.drift import LayerDrift

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

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return int(self.specialisation.settings["num_layers"])


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
    from neuronmoe_plugins.specialisation.drift import load_drift

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
    from neuronmoe_plugins.specialisation.drift import DRIFT, EXTENDED

    settings = specialisation.settings
    places = {(layer, language) for layer in range(settings["num_layers"]) for language in specialisation.languages}
    path = folder / EXTENDED / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
        same = all(summary[key] == settings[key] for key in ("model", "adapter"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}; run `neuronmoe specialise --compare base` again") from error
    if not same or {(row.layer, row.language) for row in drift} != places:
        raise UserError(
            f"{folder / DRIFT} is of another model or adapter than {folder / RECORD}; delete it or run "
            "`neuronmoe specialise --compare base` again"
        )
