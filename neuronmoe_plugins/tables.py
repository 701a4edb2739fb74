"""A table, for whichever place shows it: the terminal, Markdown, or a page of HTML (`report/report.html.jinja`).

A terminal shows texts as they are: what rich would take for markup, such as `[train]`, stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import rich.table
from rich.console import Console
from rich.text import Text


@dataclass(frozen=True)
class Line:
    """One line of a cell, and how a terminal shows it (a style of rich)."""

    text: str
    style: str = ""


Cell = str | Sequence[Line]


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns; none of them is markup.

    Attributes:
        caption: What it shows; none if empty.
        header: One title per column.
        rows: As many cells each as the header has.
        words: Places of the columns that hold words, and are aligned to the left; numbers are aligned to the right.
        footer: One text per column below all rows, or nothing.
        rules: Places of the rows below which a terminal draws a line.
        folded: Whether a page shows the table only when asked for.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Collection[int] = (0,)
    footer: Sequence[str] = ()
    rules: Collection[int] = ()
    folded: bool = False


def as_rich(table: Table, no_wrap: Collection[int] = (), padding: int | tuple[int, int] = (0, 1)) -> rich.table.Table:
    """For a terminal.

    Args:
        table: The table.
        no_wrap: Places of the columns that are cut, not wrapped, where there is no room.
        padding: Blank lines above and below, and blanks left and right of each cell.
    """
    title = Text(table.caption, "table.title") if table.caption else None
    shown = rich.table.Table(title=title, padding=padding, show_footer=bool(table.footer))
    footer = table.footer or [""] * len(table.header)
    for place, (head, foot) in enumerate(zip(table.header, footer, strict=True)):
        shown.add_column(Text(head), Text(foot), no_wrap=place in no_wrap)
        shown.columns[place].justify = "left" if place in table.words else "right"
        shown.columns[place].overflow = "ellipsis" if place in no_wrap else "fold"
    for place, row in enumerate(table.rows):
        shown.add_row(*map(_text, row), end_section=place in table.rules)
    return shown


def print_text(console: Console, text: str) -> None:
    """Print a text as it is, in one line however narrow the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def as_markdown(table: Table) -> str:
    """Header and rows, without the caption; the lines of a cell, and of a title, stand side by side."""
    rule = ["---" if place in table.words else "---:" for place in range(len(table.header))]
    cells = [[" ".join(title.split("\n")) for title in table.header], rule]
    cells += [["<br>".join(line.text for line in _lines(cell)) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def count(number: float) -> str:
    """A number of things, with thousands set apart."""
    return f"{number:,.0f}" if number == round(number) else f"{number:,.2f}"


def _lines(cell: Cell) -> Sequence[Line]:
    return [Line(cell)] if isinstance(cell, str) else cell


def _text(cell: Cell) -> Text:
    return Text("\n").join(Text(line.text, line.style) for line in _lines(cell))
