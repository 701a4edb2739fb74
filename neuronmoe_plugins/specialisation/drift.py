"""How a model's language-specific neurons change when it is extended (paper, Table 6 before and after)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_json
from neuronmoe_plugins.neurons.analysis import Analysis
from neuronmoe_plugins.neurons.analyze import analyze
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.neurons.options import AnalyzeOptions

BASE, EXTENDED, DRIFT = "base_analysis", "extended_analysis", "drift.json"


@dataclass(frozen=True)
class LayerDrift:
    """One decoder layer and language.

    Attributes:
        layer: Index of the decoder layer.
        language: Whose neurons.
        base: How many the base model has.
        extended: How many the extended model has; in a mixture those of the original MLP, run on all tokens.
        kept: How many are the same.
    """

    layer: int
    language: str
    base: int
    extended: int
    kept: int


def measure_drift(options: AnalyzeOptions, progress: bool = False) -> list[LayerDrift]:
    """Analyse the model without and with its adapter on the same sentences, as `neuronmoe analyze` does.

    Writes both analyses, `base_analysis` and `extended_analysis`, and `drift.json` into `options.output`.

    Args:
        options: Of the extended model.
        progress: Show progress bars on standard error.

    Raises:
        UserError: for bad input.
    """
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    base = analyze(replace(options, adapter=None, output=folder / BASE), progress)
    extended = analyze(replace(options, output=folder / EXTENDED), progress)
    rows = compare_neurons(base, extended)
    write_json(folder / DRIFT, [asdict(row) for row in rows])
    return rows


def compare_neurons(base: Analysis, extended: Analysis) -> list[LayerDrift]:
    """The neurons of two analyses of the same languages, per layer and language."""
    before, after = _by_place(base.neurons), _by_place(extended.neurons)
    return [
        LayerDrift(
            layer,
            language,
            len(before.get((layer, language), set())),
            len(after.get((layer, language), set())),
            len(before.get((layer, language), set()) & after.get((layer, language), set())),
        )
        for layer in range(base.summary["num_layers"])
        for language in base.summary["languages"]
    ]


def _by_place(neurons: Sequence[Neuron]) -> dict[tuple[int, str], set[tuple[str, int]]]:
    found: dict[tuple[int, str], set[tuple[str, int]]] = {}
    for neuron in neurons:
        found.setdefault((neuron.layer, neuron.language), set()).add((neuron.module, neuron.unit))
    return found


def load_drift(folder: Path) -> list[LayerDrift] | None:
    """What `measure_drift` wrote into a folder; None if it did not, `UserError` if that is damaged."""
    path = folder / DRIFT
    if not path.exists():
        return None
    try:
        return [LayerDrift(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no result of `neuronmoe specialise --compare base`: {error}") from error
