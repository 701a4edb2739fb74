"""A comparison as Markdown tables, for papers and READMEs."""

from __future__ import annotations

from collections.abc import Sequence

from neuronmoe_plugins.comparison.table import Cell, Comparison, Row
from neuronmoe_plugins.comparison.text import cell_lines, experts_text, metric_text, notes


def markdown(comparison: Comparison) -> str:
    """The paper's table, that of other tasks, and the notes."""
    blocks = []
    if paper := comparison.paper_rows:
        columns = [row.measure.column for row in paper]
        head = ["Model", "#Exp", *(f"{column.benchmark} {column.language}" for column in columns if column)]
        lines = [
            [model.name, experts_text(model), *(_cell(row, row.cells[place]) for row in paper)]
            for place, model in enumerate(comparison.models)
        ]
        blocks.append(_table(head, lines, left=1))
    if others := comparison.other_rows:
        head = ["Task", "Metric", *(model.name for model in comparison.models)]
        lines = [[row.measure.task, metric_text(row), *(_cell(row, cell) for cell in row.cells)] for row in others]
        blocks.append(_table(head, lines, left=2))
    return "\n\n".join([*blocks, *notes(comparison)])


def _cell(row: Row, cell: Cell | None) -> str:
    return "<br>".join(line.text for line in cell_lines(row, cell))


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    """A table whose first `left` columns are aligned to the left, the others to the right."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    rows = [head, rule, *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
