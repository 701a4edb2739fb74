"""Shows an allocation on the terminal, and as a picture over what it follows from (paper, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.comparison import compare
from neuronmoe_plugins.figures import PALETTE, count_in_whole_numbers, house_style, new_figure, save_png
from neuronmoe_plugins.tables import Table, print_table, print_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN = "unknown"
BAR_COLOURS = (PALETTE[0], "#b8c4cf")
LINE_COLOUR = "#c1272d"


def print_allocation(console: Console, allocation: Allocation, other: Allocation | None, saved: Path) -> None:
    """Print the layers, the sizes, and the differences to another allocation if there is one; `saved` has it all."""
    print_table(console, allocation_table(allocation), str(saved))
    print_text(console, f"{expert_sentence(allocation)}; {parameter_sentence(allocation)}")
    if other is not None:
        print_table(console, comparison_table(allocation, other))
    if allocation.note:
        print_text(console, f"Note: {allocation.note}.")


def allocation_table(allocation: Allocation) -> Table:
    """One row per layer with its score, experts and added parameters, and the totals."""
    added = allocation.layer_added_parameters
    rows = [
        [str(layer), f"{score:.6g}", str(experts), _count(None if added is None else added[layer])]
        for layer, (score, experts) in enumerate(zip(allocation.layer_scores, allocation.num_experts, strict=True))
    ]
    total = ["total", f"{sum(allocation.layer_scores):.6g}", str(allocation.total_experts)]
    header = ["layer", allocation.score_name, "experts", "added parameters"]
    return Table("", header, rows, words=(), footer=[*total, _count(allocation.added_parameters)])


def comparison_table(this: Allocation, other: Allocation) -> Table:
    """One row per measure: both allocations, and the difference in absolute numbers and per cent of the other."""
    rows = []
    for row in compare(this, other):
        per_cent = "–" if row.per_cent is None else f"{row.per_cent:+.1f} %"
        absolute = "–" if row.absolute is None else f"{row.absolute:+,}"
        rows.append([row.measure, _count(row.this), _count(row.other), absolute, per_cent])
    return Table("", ["", "this", "other", "difference", "per cent"], rows)


def expert_sentence(allocation: Allocation) -> str:
    """All experts, and how many of them are new: "49 experts: 28 original MLPs + 21 new"."""
    total, layers = allocation.total_experts, len(allocation.num_experts)
    return f"{total} experts: {layers} original MLPs + {allocation.new_experts} new{allocation.kind_of_new}"


def parameter_sentence(allocation: Allocation) -> str:
    """The added parameters, or why they are not known."""
    if allocation.added_parameters is None:
        keys = "hidden_size or mlp_parameters" if allocation.expert_rank is None else "hidden_size or mlp_widths"
        return f"added parameters unknown: {allocation.scores_from} lacks {keys}"
    return f"{allocation.added_parameters:,} added parameters"


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


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
