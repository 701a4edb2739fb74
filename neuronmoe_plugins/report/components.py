"""In which projections of each layer the neurons are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuronmoe_plugins.figures import draw_cells, new_figure
from neuronmoe_plugins.report.parts import Picture, Section
from neuronmoe_plugins.report.run import Run
from neuronmoe_plugins.tables import count

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def components_section(run: Run) -> Section:
    """Neurons per projection, layer and language."""
    name, heading = "components", "Projections"
    if not run.neurons:
        return Section(name, heading, notes=["No neuron passes the threshold, so there is nothing to show."])
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
    return Section(name, heading, picture)


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
