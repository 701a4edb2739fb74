"""The picture of an allocation: experts per layer, under the scores that they follow (paper, Figure 1)."""

from __future__ import annotations

from pathlib import Path

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.figures import new_figure, save_png


def save_allocation_figure(path: Path, allocation: Allocation) -> None:
    """Draw base and new experts of every layer as bars, and the layer scores as a line, into a PNG.

    Args:
        path: The PNG to write.
        allocation: The allocation.
    """
    from matplotlib.ticker import MaxNLocator

    layers = range(len(allocation.num_experts))
    figure = new_figure(8, 3.6)
    axes = figure.add_subplot()
    axes.bar(layers, [1] * len(layers), color="0.8", label="original MLP (frozen)")
    axes.bar(layers, [count - 1 for count in allocation.num_experts], bottom=1, color="tab:blue", label="new experts")
    axes.set(title=_title(allocation), xlabel="decoder layer", ylabel="experts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    scores = axes.twinx()
    scores.plot(layers, allocation.layer_scores, color="tab:red", marker="o", markersize=3, label="layer score")
    scores.set_ylabel("layer score (distinct neurons)")
    scores.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save_png(figure, path)


def _title(allocation: Allocation) -> str:
    """What was allocated, for which languages."""
    languages = ", ".join(name for name in (allocation.source, *allocation.targets) if name)
    total = f"{allocation.total_experts} experts in {len(allocation.num_experts)} layers"
    return f"{total}: {languages}" if languages else total
