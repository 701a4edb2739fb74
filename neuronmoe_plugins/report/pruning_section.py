"""Which experts `neuronmoe prune` dropped, and what that cost."""

from __future__ import annotations

from dataclasses import replace

from neuronmoe_plugins.pruning.display import layers_table, losses_table, summary
from neuronmoe_plugins.report.parts import Section
from neuronmoe_plugins.report.run import Run


def pruning_section(run: Run) -> Section | None:
    """A table of layers and one of losses for each pruned adapter of the run's folder; None without any."""
    if not run.prunings:
        return None
    notes, tables = [], []
    for name, pruning in run.prunings.items():
        notes.append(f"{name}, from {pruning.settings['adapter']}: {summary(pruning)}.")
        for table in (losses_table(pruning), layers_table(pruning)):
            tables.append(replace(table, caption=f"{name}: {table.caption}"))
    return Section("Which experts were dropped", notes=notes, tables=tables)
