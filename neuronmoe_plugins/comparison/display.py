"""Shows a comparison on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from typing import TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from neuronmoe_plugins.comparison.table import Cell, Comparison, Row
from neuronmoe_plugins.comparison.text import cell_lines, experts_text, metric_text, notes

# Wider than any table: files and pipes have no width of their own.
UNLIMITED = 100_000
Part = TypeVar("Part")


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the paper's table, that of other tasks, and the notes; on a narrow terminal, tables in several parts."""
    for table in _tables(console, comparison):
        _print_whole(console, table)
    for note in notes(comparison):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _tables(console: Console, comparison: Comparison) -> Iterator[Table]:
    if comparison.paper_rows:
        benchmarks = [list(rows) for _, rows in groupby(comparison.paper_rows, key=_benchmark)]
        yield from _fitting(console, benchmarks, lambda parts: paper_table(comparison, list(chain(*parts))))
    if comparison.other_rows:
        places = range(len(comparison.models))
        yield from _fitting(console, places, lambda parts: others_table(comparison, parts))


def _benchmark(row: Row) -> str:
    return row.measure.column.benchmark if row.measure.column else ""


def paper_table(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """One line per model, and a column for each of these benchmarks and languages (paper, Table 1), in per cent."""
    table = Table("Model", show_lines=True)
    table.add_column("#Exp", justify="right")
    for row in rows:
        if row.measure.column:
            head = f"{row.measure.column.benchmark}\n{row.measure.column.language}"
            table.add_column(head, justify="right", no_wrap=True)
    for place, model in enumerate(comparison.models):
        table.add_row(Text(model.name), experts_text(model), *(_text(row, row.cells[place]) for row in rows))
    return table


def others_table(comparison: Comparison, places: Sequence[int]) -> Table:
    """One line per metric of every other task, and a column for each of the models at these places."""
    table = Table("task", "metric", show_lines=True)
    for place in places:
        table.add_column(Text(comparison.models[place].name), justify="right", no_wrap=True)
    for row in comparison.other_rows:
        cells = [_text(row, row.cells[place]) for place in places]
        table.add_row(Text(row.measure.task), Text(metric_text(row)), *cells)
    return table


def _text(row: Row, cell: Cell | None) -> Text:
    return Text("\n").join(Text(line.text, line.style) for line in cell_lines(row, cell))


def _fitting(console: Console, parts: Sequence[Part], build: Callable[[list[Part]], Table]) -> Iterator[Table]:
    """As few tables as fit the terminal, of one part or more each."""
    room = console.width if console.is_terminal else UNLIMITED
    taken: list[Part] = []
    for part in parts:
        if taken and _width(console, build([*taken, part])) > room:
            yield build(taken)
            taken = []
        taken.append(part)
    yield build(taken)


def _width(console: Console, table: Table) -> int:
    """The characters that the table takes when nothing is cut or wrapped."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table).maximum


def _print_whole(console: Console, table: Table) -> None:
    """Print a table at its full width, also on a terminal that is narrower."""
    options = console.options.update(width=_width(console, table))
    console.print(Segments(console.render(table, options)), soft_wrap=True, end="")
