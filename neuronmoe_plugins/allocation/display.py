"""Shows an allocation on the terminal."""

from __future__ import annotations

from rich.table import Table

from neuronmoe_plugins.allocation.allocation import Allocation


def allocation_table(allocation: Allocation) -> Table:
    """One row per layer with its score and experts, and the total."""
    table = Table(show_footer=True)
    table.add_column("layer", footer="total", justify="right")
    table.add_column("score", footer=f"{sum(allocation.layer_scores):g}", justify="right")
    table.add_column("experts", footer=str(allocation.total_experts), justify="right")
    for layer, (score, experts) in enumerate(zip(allocation.layer_scores, allocation.num_experts, strict=True)):
        table.add_row(str(layer), f"{score:g}", str(experts))
    return table
