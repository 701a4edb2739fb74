"""`summary.json`: everything needed to repeat an analysis, and its counts per layer."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.components import component_of
from neuronmoe_plugins.neurons.table import layer_counts
from neuronmoe_plugins.reading import read_json_object

if TYPE_CHECKING:
    from neuronmoe_plugins.neurons.measure import Measured

PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "tokenizers", "numpy")
HISTOGRAM_BINS = 100
# What other commands cannot do without.
NEEDED: dict[str, type] = {"languages": list, "num_layers": int, "units_per_module": dict, "files": dict}


def build(languages: Sequence[str], settings: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """The content of `summary.json`, but for the corpora.

    Args:
        languages: Names of the languages.
        settings: The resolved options.
        measured: What came out.
    """
    num_layers, identity = measured.model["num_layers"], settings["neuron_identity"]
    neurons, scores = measured.neurons, measured.scores
    modules = list(dict.fromkeys(module for _, module in scores))
    return {
        **measured.model,
        "languages": list(languages),
        **settings,
        "units_per_module": _units_per_module(scores, num_layers),
        "module_components": {module: _component(module) for module in modules},
        "neurons_per_language": {name: sum(neuron.language == name for neuron in neurons) for name in languages},
        "layer_counts": {name: layer_counts(neurons, [name], num_layers, identity) for name in languages},
        "pair_layer_counts": {
            "+".join(pair): layer_counts(neurons, pair, num_layers, identity) for pair in combinations(languages, 2)
        },
        "mlp_input_similarity": measured.similarity,
        "score_histogram": _histogram(scores, languages),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _component(module: str) -> str:
    # Activation functions are looked for in MLPs alone, whatever their names.
    return component_of(module) or "mlp"


def _units_per_module(scores: Mapping[ModuleKey, ScoreArray], num_layers: int) -> dict[str, int | list[int]]:
    """Neurons of each module: one number, or one per layer where layers differ, 0 where a layer has none."""
    units: dict[str, list[int]] = {module: [0] * num_layers for _, module in scores}
    for (layer, module), module_scores in scores.items():
        units[module][layer] = module_scores.shape[1]
    return {module: sizes[0] if len(set(sizes)) == 1 else sizes for module, sizes in units.items()}


def _histogram(scores: Mapping[ModuleKey, ScoreArray], languages: Sequence[str]) -> dict[str, Any]:
    """How often each score occurs among all units, by language and component."""
    lowest = min(0.0, *(float(values.min()) for values in scores.values()))
    highest = max(1.0, *(float(values.max()) for values in scores.values()))
    edges = np.linspace(lowest, highest, HISTOGRAM_BINS + 1)
    counts: dict[str, dict[str, Any]] = {language: {} for language in languages}
    for (_, module), values in scores.items():
        component = _component(module)
        for language, row in zip(languages, values, strict=True):
            counts[language][component] = counts[language].get(component, 0) + np.histogram(row, edges)[0]
    return {
        "edges": edges.tolist(),
        "counts": {
            language: {component: bins.tolist() for component, bins in of_language.items()}
            for language, of_language in counts.items()
        },
    }


def read(folder: Path) -> dict[str, Any]:
    """The summary of the analysis in `folder`; raises `UserError` if there is none or it lacks what others need."""
    path = folder / "summary.json"
    record = read_json_object(
        path,
        "run `neuronmoe analyze` again",
        missing=f"{folder} holds no analysis (no summary.json); run `neuronmoe analyze` first",
        wrong="is no summary of an analysis",
    )
    for key, expected in NEEDED.items():
        if not isinstance(record.get(key), expected):
            raise UserError(f"{path} is no summary of an analysis: {key!r} is missing; run `neuronmoe analyze` again")
    return record
