"""The picture of an allocation: experts per layer, under the scores that they follow (paper, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.figures import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("tab:blue", "tab:orange")


def save_allocation_figure(path: Path, allocation: Allocation, other: Allocation | None = None) -> None:
    """Draw base and new experts of every layer as bars, and the layer scores as a line, into a PNG.

    Args:
        path: The PNG to write.
        allocation: The allocation; the line shows its scores.
        other: Another one for the same model, whose bars are drawn beside.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [allocation] if other is None else [allocation, other]
    figure = new_figure(8 if other is None else 10, 3.6)
    axes = figure.add_subplot()
    _draw_bars(axes, shown)
    axes.set(title="\n".join(map(_title, shown)), xlabel="decoder layer", ylabel="experts")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if allocation.layer_scores:
        _draw_scores(axes, allocation)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    save_png(figure, path)


def _draw_bars(axes: Axes, shown: Sequence[Allocation]) -> None:
    """The bars of each allocation, side by side within a layer."""
    width = 0.8 / len(shown)
    for index, (allocation, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        shift = (index - (len(shown) - 1) / 2) * width
        places = [layer + shift for layer in range(len(allocation.num_experts))]
        base_label = "original MLP (frozen)" if index == 0 else None
        label = "new experts" if len(shown) == 1 else f"new experts, {_name(index, shown)}"
        axes.bar(places, [1] * len(places), width, color="0.8", label=base_label)
        axes.bar(places, [count - 1 for count in allocation.num_experts], width, bottom=1, color=colour, label=label)


def _draw_scores(axes: Axes, allocation: Allocation) -> None:
    scores = axes.twinx()
    layers = range(len(allocation.layer_scores))
    name = allocation.score_name
    scores.plot(layers, allocation.layer_scores, color="tab:red", marker="o", markersize=3, label=name)
    scores.set_ylabel(name)
    scores.set_ylim(bottom=0)


def _name(index: int, shown: Sequence[Allocation]) -> str:
    """The strategy, or which of the two it is where both have the same."""
    strategies = [allocation.strategy for allocation in shown]
    return strategies[index] if strategies[0] != strategies[1] else f"{strategies[index]} ({('this', 'other')[index]})"


def _title(allocation: Allocation) -> str:
    """What was allocated, how, and for which languages."""
    languages = ", ".join(name for name in (allocation.source, *allocation.targets) if name)
    total = f"{allocation.total_experts} experts in {len(allocation.num_experts)} layers ({allocation.new_experts} new)"
    return f"{allocation.strategy}, {languages}: {total}" if languages else f"{allocation.strategy}: {total}"
