"""The picture of one or two allocations over what they follow from (paper, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.figures import PALETTE, count_in_whole_numbers, house_style, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_COLOURS = (PALETTE[0], "#b8c4cf")
LINE_COLOUR = "#c1272d"


@dataclass(frozen=True)
class Bars:
    """One allocation: experts per layer, the original MLP included."""

    label: str
    num_experts: Sequence[int]


@dataclass(frozen=True)
class Line:
    """One number per layer, on an axis of its own; empty: no line."""

    label: str
    axis: str
    values: Sequence[float]


def draw_experts(title: str, groups: Sequence[Bars], line: Line) -> Figure:
    """Bars of one or two allocations side by side, and a line over them."""
    figure = new_figure(10, 4.2)
    axes = figure.add_subplot()
    width = 0.8 / len(groups)
    for place, group in enumerate(groups):
        lefts = [layer - 0.4 + place * width for layer in range(len(group.num_experts))]
        axes.bar(lefts, group.num_experts, width, align="edge", color=BAR_COLOURS[place], label=group.label)
    axes.set(title=title, xlabel="decoder layer", ylabel="experts")
    axes.set_xlim(-0.7, len(groups[0].num_experts) - 0.3)
    count_in_whole_numbers(axes.xaxis, axes.yaxis)
    if line.values:
        diversity = axes.twinx()
        diversity.plot(line.values, color=LINE_COLOUR, linestyle="-", marker="o", label=line.label)
        diversity.set_ylabel(line.axis)
        diversity.set_ylim(bottom=0)
        diversity.spines["right"].set_visible(True)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_allocations(allocation: Allocation, other: Allocation | None = None) -> Figure:
    """An allocation over its layer scores, and beside it another one for the same model."""
    shown = [allocation] if other is None else [allocation, other]
    groups = [Bars(_label(index, shown), each.num_experts) for index, each in enumerate(shown)]
    line = Line(allocation.score_name, allocation.score_name, allocation.layer_scores)
    return draw_experts("\n".join(map(_title, shown)), groups, line)


def save_allocation_figure(path: Path, allocation: Allocation, other: Allocation | None = None) -> None:
    """Write what `draw_allocations` gives as a PNG."""
    with house_style():
        save_png(draw_allocations(allocation, other), path)


def _label(index: int, shown: Sequence[Allocation]) -> str:
    """The strategy, or which of the two it is where both have the same."""
    strategies = [allocation.strategy for allocation in shown]
    same = len(shown) == 2 and strategies[0] == strategies[1]
    return f"{strategies[index]} ({('this', 'other')[index]})" if same else strategies[index]


def _title(allocation: Allocation) -> str:
    """What was allocated, how, and for which languages."""
    languages = ", ".join(name for name in (allocation.source, *allocation.targets) if name)
    total = f"{allocation.total_experts} experts in {len(allocation.num_experts)} layers ({allocation.new_experts} new)"
    return f"{allocation.strategy}, {languages}: {total}" if languages else f"{allocation.strategy}: {total}"
