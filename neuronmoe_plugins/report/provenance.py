"""What was analysed, and how: everything needed to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuronmoe_plugins.report.parts import Section
from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tables import Table, count

SETTINGS = {
    "model": "model",
    "adapter": "adapter",
    "model_type": "kind of model",
    "model_commit": "commit of the model",
    "dtype": "dtype",
    "device": "device",
    "metric": "metric",
    "observes": "observed",
    "components": "components",
    "unmeasured_modules": "projections left out",
    "pooling": "pooling over tokens",
    "min_score": "only scores above",
    "top_n": "neurons per language, at most",
    "neuron_identity": "neurons are told apart by",
    "samples": "sentences per language",
    "max_tokens": "tokens per sentence, at most",
    "batch_size": "batch size",
    "seed": "seed",
}
CORPUS_COUNTS = {
    "available": "sentences", "sampled": "sampled", "truncated": "truncated", "duplicates": "duplicates",
}  # fmt: skip
SHORT_HASH = 12


def provenance_section(run: Run) -> Section:
    """Settings, corpora and versions."""
    notes = run.lacks(*SETTINGS, "corpora", "versions")
    settings = [[title, _text(run.summary[key])] for key, title in SETTINGS.items() if key in run.summary]
    versions = [[name, str(version)] for name, version in run.summary.get("versions", {}).items()]
    tables = [Table("Settings", ["setting", "value"], settings, words=range(2))]
    if versions:
        tables.append(Table("Versions", ["package", "version"], versions, words=range(2)))
    if corpora := run.summary.get("corpora"):
        tables.append(_corpus_table(corpora))
    return Section("run", "The run", notes=notes, tables=tables)


def _corpus_table(corpora: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            *(str(corpus.get(key, "–")) for key in ("language", "path")),
            str(corpus.get("sha256", "–"))[:SHORT_HASH],
            *(count(corpus[key]) if key in corpus else "–" for key in CORPUS_COUNTS),
        ]
        for corpus in corpora
    ]
    header = ["language", "file", "SHA-256", *CORPUS_COUNTS.values()]
    return Table("Corpora", header, rows, words=range(3))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
