"""The picture of an analysis: language-specific neurons per decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from neuronmoe_plugins.figures import new_figure, save_png


def save_layer_figure(path: Path, counts: Mapping[str, Sequence[int]], title: str) -> None:
    """Draw one line per language over the layers into a PNG.

    Args:
        path: the PNG to write.
        counts: for each language the number of neurons in every layer.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8, 4)
    axes = figure.add_subplot()
    for language, per_layer in counts.items():
        axes.plot(range(len(per_layer)), per_layer, marker="o", markersize=3, label=language)
    axes.set(title=title, xlabel="decoder layer", ylabel="language-specific neurons")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="language")
    save_png(figure, path)
