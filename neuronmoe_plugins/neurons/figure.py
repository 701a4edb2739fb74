"""The picture of an analysis: language-specific neurons per decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def save_layer_figure(path: Path, counts: Mapping[str, Sequence[int]], title: str) -> None:
    """Draw one line per language over the layers into a PNG.

    Args:
        path: the PNG to write.
        counts: for each language the number of neurons in every layer.
    """
    # The object interface needs no display and leaves the caller's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for language, per_layer in counts.items():
        axes.plot(range(len(per_layer)), per_layer, marker="o", markersize=3, label=language)
    axes.set(title=title, xlabel="decoder layer", ylabel="language-specific neurons")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(title="language")
    figure.savefig(path, dpi=150, format="png")
