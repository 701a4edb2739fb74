"""Shows an allocation on the terminal."""

from __future__ import annotations

from rich.console import Console

from neuronmoe_plugins.allocation.allocation import Allocation
from neuronmoe_plugins.allocation.comparison import compare
from neuronmoe_plugins.tables import Table, as_rich

UNKNOWN = "unknown"


def print_allocation(console: Console, allocation: Allocation, other: Allocation | None = None) -> None:
    """Print the layers, the sizes, and the differences to another allocation if there is one."""
    console.print(as_rich(allocation_table(allocation)))
    print_text(console, f"{expert_sentence(allocation)}; {parameter_sentence(allocation)}")
    if other is not None:
        console.print(as_rich(comparison_table(allocation, other)))
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
    return f"{total} experts: {layers} original MLPs + {allocation.new_experts} new"


def parameter_sentence(allocation: Allocation) -> str:
    """The added parameters, or why they are not known."""
    if allocation.added_parameters is None:
        return f"added parameters unknown: {allocation.scores_from} lacks hidden_size or mlp_parameters"
    return f"{allocation.added_parameters:,} added parameters"


def print_text(console: Console, text: str) -> None:
    """Print a text as it is, in one line however narrow the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"
