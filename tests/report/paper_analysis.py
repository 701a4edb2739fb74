"""An analysis folder as `neuronmoe analyze` leaves it, with the paper's counts for Llama-3.2-3B and no model run."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from allocations import save_allocation
from neuronmoe_plugins.neurons.analysis import layer_counts, write_neurons
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.report.parts import Section

TABLES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "paper_tables.json").read_text())
COUNTS: dict[str, list[int]] = TABLES["table6_neurons_per_language"] | {}
COUNTS.pop("note")
UNITS = {
    "self_attn.q_proj": 3072, "self_attn.k_proj": 1024, "self_attn.v_proj": 1024, "self_attn.o_proj": 3072,
    "mlp.gate_proj": 8192, "mlp.up_proj": 8192, "mlp.down_proj": 3072,
}  # fmt: skip
COMPONENTS = {module: "mlp" if module.startswith("mlp") else "attention" for module in UNITS}
HIDDEN_SIZE = 3072
MLP_PARAMETERS = 3 * 3072 * 8192
BINS = 50
LEFT_OUT = object()


def paper_neurons(languages: Sequence[str] = tuple(COUNTS)) -> list[Neuron]:
    """As many neurons per layer as the paper counts, best first.

    The first two languages have as many distinct ones as in its Table 5; others share what chance gives them.
    """
    places = [(module, unit) for module, units in UNITS.items() for unit in range(units // 12)]
    neurons: list[Neuron] = []
    for language, counts in zip(languages, COUNTS.values(), strict=True):
        generator = random.Random(language)
        scores = sorted((1 - 0.499 * generator.random() ** 0.4 for _ in range(sum(counts))), reverse=True)
        own = [(layer, place) for layer, count in enumerate(counts) for place in generator.sample(places, count)]
        if len(neurons) == sum(COUNTS["en"]):
            own = _with_distinct(neurons, counts, places, generator)
        generator.shuffle(own)
        neurons += [Neuron(language, layer, *place, score) for (layer, place), score in zip(own, scores, strict=True)]
    return neurons


def paper_summary(neurons: Sequence[Neuron], languages: Sequence[str] = tuple(COUNTS)) -> dict[str, Any]:
    """The summary that belongs to these neurons."""
    layers = len(COUNTS["en"])
    return {
        "model": "meta-llama/Llama-3.2-3B", "adapter": None, "model_type": "llama", "model_commit": None,
        "dtype": "float32", "device": "cuda:0", "samples": 500, "top_n": 1000, "min_score": 0.5,
        "languages": list(languages),
        "max_tokens": 256, "batch_size": 16, "seed": 42, "metric": "ap", "observes": "projections", "pooling": "mean",
        "unmeasured_modules": [], "components": ["attention", "mlp"], "neuron_identity": "module", "num_layers": layers,
        "units_per_module": UNITS, "module_components": COMPONENTS, "hidden_size": HIDDEN_SIZE,
        "mlp_parameters": [MLP_PARAMETERS] * layers,
        "corpora": [_corpus(index, language) for index, language in enumerate(languages)],
        "neurons_per_language": {name: sum(neuron.language == name for neuron in neurons) for name in languages},
        "layer_counts": {name: layer_counts(neurons, [name], layers) for name in languages},
        "pair_layer_counts": {"+".join(p): layer_counts(neurons, p, layers) for p in combinations(languages, 2)},
        "mlp_input_similarity": {
            "tokens": dict.fromkeys(languages, 12_000),
            "layers": [_similarity(layer, len(languages)) for layer in range(layers)],
        },
        "score_histogram": {
            "edges": [edge / BINS for edge in range(BINS + 1)],
            "counts": {name: _histogram(1 / len(languages), shift) for shift, name in enumerate(languages)},
        },
        "versions": {"python": "3.11.2", "neuronmoe-plugins": "0.1.0", "torch": "2.13.0", "transformers": "5.5.0"},
    }  # fmt: skip


def write_analysis(
    folder: Path,
    languages: Sequence[str] = tuple(COUNTS),
    neurons: Sequence[Neuron] | None = None,
    **changes: Any,
) -> None:
    """Write the folder; a key changed to `LEFT_OUT` is not in the summary."""
    folder.mkdir(parents=True)
    neurons = paper_neurons(languages) if neurons is None else neurons
    write_neurons(folder / "neurons.parquet", neurons)
    summary = paper_summary(neurons, languages) | changes
    kept = {key: value for key, value in summary.items() if value is not LEFT_OUT}
    kept["files"] = {"neurons.parquet": hashlib.sha256((folder / "neurons.parquet").read_bytes()).hexdigest()}
    (folder / "summary.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")


def save_paper_allocation(path: Path) -> None:
    """Write the paper's 49 experts for English and Greek."""
    scores = [float(number) for number in TABLES["table5_unique_neurons_en_el"]]
    save_allocation(path, TABLES["table2_llama32_3b_greek"]["neuronmoe"], scores)


def read_page(path: Path) -> ElementTree.Element:
    """The elements of a report's page or figure: it is well-formed XML."""
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def legend_of(section: Section) -> list[str]:
    """The texts of all legends of a section's picture."""
    assert section.picture is not None
    figure = section.picture.figure
    own = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    return [text.get_text() for found in own for text in found.get_texts()]


def _corpus(index: int, language: str) -> dict[str, object]:
    return {
        "language": language, "path": f"corpora/{language}.jsonl", "sha256": f"{index + 11:02x}" * 32,
        "available": 20_000 - 1111 * index, "sampled": 500, "truncated": 3 * index, "duplicates": 7 + index,
    }  # fmt: skip


def _with_distinct(
    first: Sequence[Neuron], counts: Sequence[int], places: Sequence[tuple[str, int]], generator: random.Random
) -> list[tuple[int, tuple[str, int]]]:
    """Places of a second language that has, with the first, the distinct neurons of the paper's Table 5."""
    own = []
    for layer, distinct in enumerate(TABLES["table5_unique_neurons_en_el"]):
        taken = [(neuron.module, neuron.unit) for neuron in first if neuron.layer == layer]
        shared = len(taken) + counts[layer] - distinct
        free = [place for place in places if place not in taken]
        own += [(layer, place) for place in taken[:shared] + generator.sample(free, counts[layer] - shared)]
    return own


def _similarity(layer: int, languages: int) -> list[list[float]]:
    """Cosines of one layer from which LayerMoE's experts of the paper's Table 2 follow, for the first two languages."""
    cosine = 1 / (TABLES["table2_llama32_3b_greek"]["layermoe"][layer] - 0.5)
    distance = [0, 1.0, 1.4, 1.9, 2.5]
    near = [
        [distance[abs(row - column)] - 0.15 * min(row, column) for column in range(languages)]
        for row in range(languages)
    ]
    return [[cosine ** (0.4 if one <= 0 else 0.6 + 0.4 * one) for one in row] for row in near]


def _histogram(base_rate: float, shift: int) -> dict[str, list[int]]:
    """Counts in each bin for both components: a bell around the base rate with a long tail."""
    centres = [(index + 0.5) / BINS for index in range(BINS)]
    bell = [math.exp(-(((centre - base_rate) / 0.09) ** 2) / 2) + 3e-3 * math.exp(-6 * centre) for centre in centres]
    sizes = {"attention": 8192 * 28 / 12, "mlp": 19_456 * 28 / 12 * (1 + shift / 10)}
    return {component: [round(size * weight) for weight in bell] for component, size in sizes.items()}
