"""An analysis folder: the neurons and the summary that belongs to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.figures import save_layer_figure
from neuronmoe_plugins.files import sha256_of, write_json
from neuronmoe_plugins.neurons import summary
from neuronmoe_plugins.neurons.table import Neuron, read_neurons, write_neurons

NEURONS = "neurons.parquet"
# The summary comes last: it names the neuron table that belongs to it.
OUTPUT_FILES = (NEURONS, "neurons.png", "summary.json")


@dataclass(frozen=True)
class Analysis:
    """What came out: the neurons, and the content of `summary.json`."""

    neurons: list[Neuron]
    summary: dict[str, Any]

    def neurons_per_language(self) -> dict[str, int]:
        """How many neurons each language has in all."""
        return dict(self.summary["neurons_per_language"])

    def warnings(self) -> list[str]:
        """What the user should know about the adapter and the corpora, a line each."""
        base, model = self.summary["adapter_base"], self.summary["model"]
        other_base = base is not None and Path(base).name != Path(model).name
        return [
            *([f"the adapter says that it is for {base}, not for {model}"] if other_base else []),
            *shared_sentence_warnings(self.summary["shared_sentences"]["pairs"]),
        ]

    @classmethod
    def load(cls, folder: Path) -> Analysis:
        """Read an analysis folder; raises `UserError` if it is missing, incomplete or does not fit together."""
        record = summary.read(folder)
        path = folder / NEURONS
        neurons = read_neurons(path)
        if sha256_of([path]) != record["files"].get(NEURONS):
            raise UserError(
                f"{path} is not the table that {folder / 'summary.json'} belongs to; run `neuronmoe analyze` again"
            )
        _require_same_model(path, neurons, record)
        return cls(neurons, record)


def shared_sentence_warnings(pairs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each pair of languages that have sampled sentences in common."""
    return [
        f"{pair['count']} sampled sentences are the same in {' and '.join(pair['languages'])}, as "
        f"{pair['examples'][0][:60]!r}"
        for pair in pairs
    ]


def _require_same_model(path: Path, neurons: list[Neuron], record: dict[str, Any]) -> None:
    """Raise `UserError` for the first neuron that the summary's model or languages do not have."""
    for neuron in neurons:
        if neuron.language not in record["languages"] or not 0 <= neuron.unit < _units(record, neuron):
            raise UserError(
                f"{path} is of another analysis: it has neuron {neuron.unit} of {neuron.module} in layer "
                f"{neuron.layer} for {neuron.language}, which is not in its summary; run `neuronmoe analyze` again"
            )


def _units(record: dict[str, Any], neuron: Neuron) -> int:
    """Size of the neuron's module by the summary: one number, or one per layer; 0 if there is no such module."""
    units = record["units_per_module"].get(neuron.module)
    if isinstance(units, list):
        units = units[neuron.layer] if 0 <= neuron.layer < len(units) else 0
    return units if isinstance(units, int) and 0 <= neuron.layer < record["num_layers"] else 0


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Write the three files into an existing folder."""
    write_neurons(folder / NEURONS, analysis.neurons)
    record = analysis.summary
    threshold = "" if record["min_score"] is None else f" above {record['min_score']:g}"
    title = f"{Path(record['model']).name}: neurons{threshold} ({record['metric']})"
    save_layer_figure(folder / "neurons.png", record["layer_counts"], title)
    write_json(folder / "summary.json", {**record, "files": {NEURONS: sha256_of([folder / NEURONS])}})
