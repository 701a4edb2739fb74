"""Where each language's neurons are: in which layers and projections, and which belong to several languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.figures import draw_cells, draw_layer_counts, new_figure
from neuronmoe_plugins.neurons.metrics import Neuron
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tables import Table, count

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


NO_NEURONS = "No language has a neuron of its own, so there is nothing to show."


def layers_section(run: Run) -> Section:
    """Neurons per layer and language."""
    heading = "Neurons per layer and language"
    if notes := run.lacks("layer_counts"):
        return Section(heading, notes=notes)
    if not run.neurons:
        return Section(heading, notes=[NO_NEURONS])
    counts: dict[str, list[int]] = run.summary["layer_counts"]
    peaks = [f"{language} peaks in layer {int(np.argmax(own))} with {max(own)}" for language, own in counts.items()]
    picture = Picture(
        draw_layer_counts(counts, "Language-specific neurons in each decoder layer"),
        "Each line counts the neurons that fire for one language; a peak is a layer that treats that language apart.",
        f"Line chart of language-specific neurons over {run.num_layers} decoder layers: {'; '.join(peaks)}.",
    )
    rows = [[str(layer), *(count(own[layer]) for own in counts.values())] for layer in range(run.num_layers)]
    totals = ["all", *(count(sum(own)) for own in counts.values())]
    table = Table("Neurons per layer, in numbers", ["layer", *counts], rows, footer=totals, folded=True)
    return Section(heading, picture, tables=[table])


def overlap_section(run: Run) -> Section:
    """Neurons that two languages share, and how many are one language's own."""
    heading, languages = "Overlap between languages", run.languages
    shared = shared_neurons(run.neurons, languages)
    if not np.triu(shared, 1).any():
        return Section(heading, notes=["No two of these languages share a neuron."], tables=[_language_table(run)])
    pairs = [
        f"{languages[row]} and {languages[column]} share {shared[row, column]}"
        for row in range(len(languages))
        for column in range(row)
    ]
    picture = Picture(
        _draw_overlap(shared, languages),
        "A cell counts the neurons that both of its languages have; the grey diagonal counts all of a language.",
        f"Heatmap of the neurons that pairs of {len(languages)} languages share: {'; '.join(pairs)}.",
    )
    return Section(heading, picture, tables=[_language_table(run)])


def _language_table(run: Run) -> Table:
    """Neurons of each language, and the range of their scores."""
    owners = Counter((neuron.layer, neuron.module, neuron.unit) for neuron in run.neurons)
    rows = []
    for language in run.languages:
        own = [neuron for neuron in run.neurons if neuron.language == language]
        only = sum(owners[neuron.layer, neuron.module, neuron.unit] == 1 for neuron in own)
        scores = [neuron.score for neuron in own]
        ends = [f"{min(scores):.3f}", f"{max(scores):.3f}"] if own else ["–", "–"]
        rows.append([language, count(len(own)), count(only), *ends])
    header = ["language", "neurons", "of no other language", "lowest score", "highest score"]
    return Table("Neurons per language", header, rows, footer=["distinct", count(len(owners)), "", "", ""])


def shared_neurons(neurons: Sequence[Neuron], languages: Sequence[str]) -> NDArray[np.int64]:
    """How many neurons two languages share, int64 (languages, languages); the same is the same unit of a module."""
    places: dict[str, set[tuple[int, str, int]]] = {language: set() for language in languages}
    for neuron in neurons:
        places[neuron.language].add((neuron.layer, neuron.module, neuron.unit))
    return np.array([[len(places[one] & places[other]) for other in languages] for one in languages], dtype=np.int64)


def _draw_overlap(shared: NDArray[np.int64], languages: Sequence[str]) -> Figure:
    """A cell per pair; the diagonal is left out of the colours, which it would use up, and so are zeros."""
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    size = len(languages)
    longest = max(map(len, languages))
    figure = new_figure(max(6.0, 0.8 * size + 2.4) + 0.08 * longest, max(4.4, 0.65 * size + 1.6))
    axes = figure.add_subplot()
    diagonal = np.eye(size, dtype=bool)
    highest = int(shared[~diagonal].max(initial=1))
    axes.set_facecolor("#f5f7f9")
    own = np.ma.masked_array(diagonal, ~diagonal)
    axes.pcolormesh(own, cmap="Greys", vmin=0, vmax=6, edgecolors="white", linewidth=2)
    coloured = np.where(diagonal | (shared == 0), np.nan, shared)
    texts = [list(map(count, row)) for row in shared]
    mesh = draw_cells(axes, coloured, Normalize(0, highest), texts, gap=2, fontsize=10)
    middles = np.arange(size) + 0.5
    axes.set(title="Neurons that two languages share", xlabel="language", ylabel="language")
    axes.set_xticks(middles, languages, rotation=0 if longest <= 8 else 90)
    axes.set_yticks(middles, languages)
    axes.invert_yaxis()
    bar = figure.colorbar(mesh, label="shared neurons (count)", ticks=MaxNLocator(integer=True))
    bar.outline.set_visible(False)
    return figure


def components_section(run: Run) -> Section:
    """Neurons per projection, layer and language."""
    heading = "Projections"
    if not run.neurons:
        return Section(heading, notes=[NO_NEURONS])
    modules = list(run.summary["units_per_module"])
    counts = module_counts(run, modules)
    per_module = counts.sum(axis=2)
    strongest = [
        f"{language} has most in {modules[int(np.argmax(own))]} ({count(own.max())} of {count(own.sum())})"
        for language, own in zip(run.languages, per_module, strict=True)
        if own.any()
    ]
    picture = Picture(
        _draw_components(counts, run.languages, modules),
        "A row is a projection of the decoder layer; the darker a cell, the more of the language’s neurons are there, "
        "and an empty one holds none.",
        f"Heatmaps of neurons by projection and decoder layer, one per language: {'; '.join(strongest)}.",
    )
    return Section(heading, picture)


def module_counts(run: Run, modules: Sequence[str]) -> NDArray[np.int64]:
    """Neurons, int64 (languages, modules, layers)."""
    counter = Counter((neuron.language, neuron.module, neuron.layer) for neuron in run.neurons)
    cells = [
        [[counter[language, module, layer] for layer in range(run.num_layers)] for module in modules]
        for language in run.languages
    ]
    return np.array(cells, dtype=np.int64)


def _draw_components(counts: NDArray[np.int64], languages: Sequence[str], modules: Sequence[str]) -> Figure:
    """A panel per language; all have one logarithmic scale of colours, for one layer can hold most neurons."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = new_figure(10, 1.4 + len(languages) * (0.5 + 0.2 * len(modules)))
    figure.suptitle("Neurons in each projection and layer")
    panels = figure.subplots(len(languages), 1, sharex=True, squeeze=False)[:, 0]
    scale = LogNorm(vmin=1, vmax=max(2, counts.max()))
    for axes, language, own in zip(panels, languages, counts, strict=True):
        mesh = draw_cells(axes, np.where(own > 0, own, np.nan), scale, gap=0.5)
        axes.set_title(language, fontsize=10, pad=4)
        axes.set_facecolor("#f5f7f9")
        axes.set_yticks(np.arange(len(modules)) + 0.5, modules, fontsize=8)
        axes.invert_yaxis()
    ticks = range(0, counts.shape[2], max(1, counts.shape[2] // 14))
    panels[-1].set_xticks([tick + 0.5 for tick in ticks], [str(tick) for tick in ticks])
    panels[-1].set_xlabel("decoder layer")
    figure.supylabel("projection", fontsize=10)
    bar = figure.colorbar(mesh, ax=list(panels), label="neurons (count)", format=StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.outline.set_visible(False)
    return figure
