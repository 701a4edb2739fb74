"""What an analysis measured beside its neurons, and how it was made: scores, similarity of layers, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronmoe_plugins.figures import draw_layer_lines, new_figure
from neuronmoe_plugins.neurons.analysis import tokenizer_fits
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tables import Table, count
from neuronmoe_plugins.tokenizer_fit import HEADER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TOP = 20
SCORE_NAMES = {
    "ap": "average precision",
    "attribution": "average precision of attributions",
    "lape": "activation probability",
}
# What these metrics score is not what their neurons are chosen by, so that a threshold has no place in the histogram.
CHOOSES_BY_ANOTHER_SCORE = ("lape",)
LEGEND_COLUMNS = 5
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
ADDED = {"chat_template": "in the model's chat template", "share": "share of all neurons from which it chooses"}
"""Settings that older analyses do not have."""
CORPUS_COUNTS = {
    "available": "sentences", "sampled": "sampled", "truncated": "truncated", "duplicates": "duplicates",
}  # fmt: skip
SHORT_HASH = 12


def scores_section(run: Run) -> Section:
    """The distribution of the scores of all units of the model."""
    heading = "Distribution of the scores"
    if notes := run.lacks("score_histogram", "metric", "min_score", "top_n"):
        return Section(heading, notes=notes)
    # The score that a neuron has to exceed, if there is one and the histogram is of the same scores.
    threshold = None if run.summary["metric"] in CHOOSES_BY_ANOTHER_SCORE else run.summary["min_score"]
    caption = "Each panel counts all units of the model by their score for one language, on a logarithmic scale"
    alt = f"Histograms of the scores of all units for {', '.join(run.languages)}"
    if threshold is not None:
        most = f"at most {count(run.summary['top_n'])} of those" if run.summary["top_n"] is not None else "those"
        caption += f"; {most} right of the dashed line become neurons of that language"
        edges, counts = _histogram(run)
        first = next((place for place, edge in enumerate(edges) if edge >= threshold), len(edges))
        above = {language: sum(sum(bins[first:]) for bins in own.values()) for language, own in counts.items()}
        units = [f"{count(number)} units are above it for {language}" for language, number in above.items()]
        alt += f", with the threshold at {threshold:g}: {'; '.join(units)}"
    return Section(heading, Picture(_draw_histograms(run, threshold), f"{caption}.", f"{alt}."))


def _histogram(run: Run) -> tuple[Sequence[float], Mapping[str, Mapping[str, Sequence[int]]]]:
    """Edges, and for each language and component the counts between them."""
    histogram = run.summary["score_histogram"]
    return histogram["edges"], histogram["counts"]


def _draw_histograms(run: Run, threshold: float | None) -> Figure:
    """A panel per language with one outline per component."""
    edges, counts = _histogram(run)
    columns = 2 if len(counts) in (2, 4) else 3
    rows = ceil(len(counts) / columns)
    figure = new_figure(10, 1.2 + 2.3 * rows)
    figure.suptitle("Scores of all units of the model")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for unused in panels[len(counts) :]:
        unused.set_visible(False)
    for place, (axes, (language, own)) in enumerate(zip(panels, counts.items(), strict=False)):
        _draw_histogram(axes, edges, own, threshold)
        axes.set_title(language, pad=4, fontsize=10)
        axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel("units")
        if place + columns >= len(counts):
            axes.set_xlabel(f"score ({SCORE_NAMES.get(run.summary['metric'], run.summary['metric'])})")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_histogram(
    axes: Axes, edges: Sequence[float], own: Mapping[str, Sequence[int]], threshold: float | None
) -> None:
    from matplotlib.ticker import StrMethodFormatter

    for place, (component, bins) in enumerate(own.items()):
        axes.stairs(bins, edges, baseline=0.8, color=f"C{place}", linewidth=1.6, label=component)
    if threshold is not None:
        axes.axvspan(threshold, max(threshold, edges[-1]), color="#f0f3f6", zorder=0)
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.2, label=f"threshold {threshold:g}")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.minorticks_off()
    axes.grid(axis="y")


def top_section(run: Run) -> Section:
    """The neurons with the highest scores."""
    tables = []
    for language in run.languages:
        own = sorted((neuron for neuron in run.neurons if neuron.language == language), key=lambda n: -n.score)[:TOP]
        rows = [[n.module, str(n.layer), str(n.unit), f"{n.score:.4f}"] for n in own]
        best = f"the best {len(own)}" if own else "no neurons"
        tables.append(Table(f"{language}: {best}", ["module", "layer", "unit", "score"], rows))
    return Section("Most specific neurons", tables=tables)


def similarity_section(run: Run) -> Section:
    """Cosine between the MLP inputs of two languages, per layer."""
    heading = "Layer similarity between languages"
    if notes := run.lacks("mlp_input_similarity"):
        return Section(heading, notes=notes)
    if run.summary["mlp_input_similarity"] is None:
        return Section(heading, notes=["Not measured: the model's MLPs are of no known feed-forward family."])
    similarity = np.array(run.summary["mlp_input_similarity"]["layers"], dtype=np.float64)
    pairs = list(combinations(range(len(run.languages)), 2))
    lowest = [
        f"{run.languages[one]} and {run.languages[other]} are least alike in layer "
        f"{int(np.argmin(similarity[:, one, other]))} ({similarity[:, one, other].min():.2f})"
        for one, other in pairs
    ]
    picture = Picture(
        _draw_similarity(similarity, run.languages),
        "Each line is the mean cosine between what the MLPs get for tokens of one language and of the other; "
        "where it is low, LayerMoE adds experts.",
        f"Line chart of the similarity of {len(pairs)} pairs of languages over {run.num_layers} decoder layers: "
        f"{'; '.join(lowest)}.",
    )
    return Section(heading, picture)


def _draw_similarity(similarity: NDArray[np.float64], languages: Sequence[str]) -> Figure:
    """One line per pair; similarity is float64 (layers, languages, languages)."""
    pairs = list(combinations(enumerate(languages), 2))
    legend_rows = ceil(len(pairs) / LEGEND_COLUMNS)
    lines = {f"{first} – {second}": similarity[:, one, other].tolist() for (one, first), (other, second) in pairs}
    title = "Similarity of two languages in each decoder layer"
    figure = draw_layer_lines(lines, title, "mean cosine", height=4 + 0.24 * legend_rows)
    figure.legend(loc="outside lower center", title="languages", ncols=ceil(len(pairs) / legend_rows))
    return figure


def provenance_section(run: Run) -> Section:
    """Settings, corpora and versions."""
    notes = run.lacks(*SETTINGS, "corpora", "versions")
    shown = SETTINGS | ADDED
    settings = [[title, _text(run.summary[key])] for key, title in shown.items() if key in run.summary]
    versions = [[name, str(version)] for name, version in run.summary.get("versions", {}).items()]
    tables = [Table("Settings", ["setting", "value"], settings, words=range(2))]
    if versions:
        tables.append(Table("Versions", ["package", "version"], versions, words=range(2)))
    corpora = [
        [
            *(str(corpus.get(key, "–")) for key in ("language", "path")),
            str(corpus.get("sha256", "–"))[:SHORT_HASH],
            *(count(corpus[key]) if key in corpus else "–" for key in CORPUS_COUNTS),
        ]
        for corpus in run.summary.get("corpora") or ()
    ]
    if corpora:
        header = ["language", "file", "SHA-256", *CORPUS_COUNTS.values()]
        tables.append(Table("Corpora", header, corpora, words=range(3)))
    if fits := tokenizer_fits(run.summary):
        rows = [[language, *fit.cells()] for language, fit in fits.items()]
        tables.append(Table("Tokens of the corpora", ["language", *HEADER], rows))
    return Section("The run", notes=notes, tables=tables)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
