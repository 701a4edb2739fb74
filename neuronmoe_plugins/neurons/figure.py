"""The picture of an analysis: language-specific neurons per decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.figures import count_in_whole_numbers, house_style, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_layer_counts(counts: Mapping[str, Sequence[int]], title: str) -> Figure:
    """One line per language over the layers.

    Args:
        counts: for each language the number of neurons in every layer.
        title: of the figure.
    """
    figure = new_figure(10, 4)
    axes = figure.add_subplot()
    for language, per_layer in counts.items():
        axes.plot(range(len(per_layer)), per_layer, label=language)
    axes.set(title=title, xlabel="decoder layer", ylabel="language-specific neurons")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    count_in_whole_numbers(axes.xaxis, axes.yaxis)
    axes.grid(axis="y")
    axes.legend(title="language")
    return figure


def save_layer_figure(path: Path, counts: Mapping[str, Sequence[int]], title: str) -> None:
    """Draw one line per language over the layers into a PNG.

    Args:
        path: the PNG to write.
        counts: for each language the number of neurons in every layer.
        title: of the figure.
    """
    with house_style():
        save_png(draw_layer_counts(counts, title), path)
