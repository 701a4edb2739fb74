"""An analysis folder: the table of neurons, the picture, and the summary that repeats it and has its counts."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.figures import save_layer_figure
from neuronmoe_plugins.files import sha256_of, write_json
from neuronmoe_plugins.neurons.arrays import ModuleKey, ScoreArray
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.neurons.options import component_of
from neuronmoe_plugins.reading import read_json_object
from neuronmoe_plugins.tokenizer_fit import TokenizerFit

NeuronIdentity = Literal["module", "unit"]
"""What tells a layer's neurons apart: module and unit index, or, as in the published code, the unit index alone."""

SCHEMA = pa.schema(
    {"language": pa.string(), "layer": pa.int32(), "module": pa.string(), "unit": pa.int32(), "score": pa.float64()}
)
NEURONS = "neurons.parquet"
PACKAGES = ("neuronmoe-plugins", "torch", "transformers", "tokenizers", "numpy")
HISTOGRAM_BINS = 100
# What other commands cannot do without.
NEEDED: dict[str, type] = {"languages": list, "num_layers": int, "units_per_module": dict, "files": dict}


@dataclass(frozen=True)
class Findings:
    """What a model showed.

    Attributes:
        scores: For every module float64 (languages, units).
        neurons: The language-specific ones.
        model: What the summary says about the model; JSON values.
        similarity: The tokens compared of each language, and for every layer the mean cosine between languages of the
            MLP's inputs; None if the model's MLPs are of no known family.
        measures: What else was measured of each layer's MLP, by its name in the summary; JSON values.
    """

    scores: Mapping[ModuleKey, ScoreArray]
    neurons: list[Neuron]
    model: dict[str, Any]
    similarity: dict[str, Any] | None
    measures: dict[str, Any]


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
            *corpus_warnings(self.summary),
        ]

    @classmethod
    def load(cls, folder: Path) -> Analysis:
        """Read an analysis folder; raises `UserError` if it is missing, incomplete or does not fit together."""
        record = read_summary(folder)
        path = folder / NEURONS
        neurons = read_neurons(path)
        if sha256_of([path]) != record["files"].get(NEURONS):
            raise UserError(
                f"{path} is not the table that {folder / 'summary.json'} belongs to; run `neuronmoe analyze` again"
            )
        for neuron in neurons:
            if neuron.language not in record["languages"] or not 0 <= neuron.unit < _units(record, neuron):
                raise UserError(
                    f"{path} is of another analysis: it has neuron {neuron.unit} of {neuron.module} in layer "
                    f"{neuron.layer} for {neuron.language}, which is not in its summary; run `neuronmoe analyze` again"
                )
        return cls(neurons, record)


def corpus_warnings(record: Mapping[str, Any]) -> list[str]:
    """A line for each pair of languages that have sampled sentences in common, and for what was not read or tokenised.

    Args:
        record: Has `model`, `corpora` and `shared_sentences`.
    """
    shared = [
        f"{pair['count']} sampled sentences are the same in {' and '.join(pair['languages'])}, as "
        f"{pair['examples'][0][:60]!r}"
        for pair in record["shared_sentences"]["pairs"]
    ]
    model = f"--model {record['model']}"
    missed = [fit.warning(model, language) for language, fit in tokenizer_fits(record).items()]
    notes = [note for corpus in record["corpora"] for note in corpus.get("notes", ())]
    return notes + shared + [line for line in missed if line is not None]


def tokenizer_fits(record: Mapping[str, Any]) -> dict[str, TokenizerFit]:
    """Language -> how the tokenizer fits its corpus, of those of which the record of an analysis says it."""
    told = {corpus["language"]: corpus.get("tokenizer") for corpus in record.get("corpora") or ()}
    return {language: TokenizerFit.load(fit) for language, fit in told.items() if fit}


def _units(record: dict[str, Any], neuron: Neuron) -> int:
    """Size of the neuron's module by the summary: one number, or one per layer; 0 if there is no such module."""
    units = record["units_per_module"].get(neuron.module)
    if isinstance(units, list):
        units = units[neuron.layer] if 0 <= neuron.layer < len(units) else 0
    return units if isinstance(units, int) and 0 <= neuron.layer < record["num_layers"] else 0


def build_summary(languages: Sequence[str], settings: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    """The content of `summary.json`, but for the corpora.

    Args:
        languages: Names of the languages.
        settings: The resolved options.
        findings: What came out.
    """
    num_layers, identity = findings.model["num_layers"], settings["neuron_identity"]
    neurons, scores = findings.neurons, findings.scores
    # Activation functions are looked for in MLPs alone, whatever their names.
    components = {module: component_of(module) or "mlp" for _, module in scores}
    return {
        **findings.model,
        "languages": list(languages),
        **settings,
        "units_per_module": _units_per_module(scores, num_layers),
        "module_components": components,
        "neurons_per_language": {name: sum(neuron.language == name for neuron in neurons) for name in languages},
        "layer_counts": {name: layer_counts(neurons, [name], num_layers, identity) for name in languages},
        "pair_layer_counts": {
            "+".join(pair): layer_counts(neurons, pair, num_layers, identity) for pair in combinations(languages, 2)
        },
        "mlp_input_similarity": findings.similarity,
        **findings.measures,
        "score_histogram": _histogram(scores, languages, components),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def _units_per_module(scores: Mapping[ModuleKey, ScoreArray], num_layers: int) -> dict[str, int | list[int]]:
    """Neurons of each module: one number, or one per layer where layers differ, 0 where a layer has none."""
    units: dict[str, list[int]] = {module: [0] * num_layers for _, module in scores}
    for (layer, module), module_scores in scores.items():
        units[module][layer] = module_scores.shape[1]
    return {module: sizes[0] if len(set(sizes)) == 1 else sizes for module, sizes in units.items()}


def _histogram(
    scores: Mapping[ModuleKey, ScoreArray], languages: Sequence[str], components: Mapping[str, str]
) -> dict[str, Any]:
    """How often each score occurs among all units, by language and component."""
    lowest = min(0.0, *(float(values.min()) for values in scores.values()))
    highest = max(1.0, *(float(values.max()) for values in scores.values()))
    edges = np.linspace(lowest, highest, HISTOGRAM_BINS + 1)
    counts: dict[str, dict[str, Any]] = {language: {} for language in languages}
    for (_, module), values in scores.items():
        for of_language, row in zip(counts.values(), values, strict=True):
            component = components[module]
            of_language[component] = of_language.get(component, 0) + np.histogram(row, edges)[0]
    return {
        "edges": edges.tolist(),
        "counts": {name: {part: bins.tolist() for part, bins in own.items()} for name, own in counts.items()},
    }


def read_summary(folder: Path) -> dict[str, Any]:
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


def layer_counts(
    neurons: Sequence[Neuron], languages: Sequence[str], num_layers: int, identity: NeuronIdentity = "module"
) -> list[int]:
    """Number of distinct neurons per layer over the given languages: the S_l of the paper's Eq. 2."""
    wanted = set(languages)
    distinct: list[set[tuple[str, int]]] = [set() for _ in range(num_layers)]
    for neuron in neurons:
        if neuron.language in wanted:
            distinct[neuron.layer].add((neuron.module if identity == "module" else "", neuron.unit))
    return [len(units) for units in distinct]


def write_neurons(path: Path, neurons: Sequence[Neuron]) -> None:
    """Write neurons as Parquet with the columns of `SCHEMA`."""
    columns = {name: [getattr(neuron, name) for neuron in neurons] for name in SCHEMA.names}
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def read_neurons(path: Path) -> list[Neuron]:
    """Read what `write_neurons` wrote; raises `UserError` for a missing or foreign file."""
    try:
        table = pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is not a neuron table ({error}); run `neuronmoe analyze` again") from error
    return [Neuron(**row) for row in table.to_pylist()]


def write_analysis(folder: Path, analysis: Analysis) -> None:
    """Write the three files into an existing folder."""
    write_neurons(folder / NEURONS, analysis.neurons)
    record = analysis.summary
    title = f"{Path(record['model']).name}: language-specific neurons in each decoder layer ({record['metric']})"
    save_layer_figure(folder / "neurons.png", record["layer_counts"], title)
    write_json(folder / "summary.json", {**record, "files": {NEURONS: sha256_of([folder / NEURONS])}})
