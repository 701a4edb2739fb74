"""A table, for whichever place shows it: the terminal, Markdown, or a page of HTML (`report/report.html.jinja`).

A terminal shows texts as they are: what rich would take for markup, such as `[train]`, stays. It cuts nothing: words
are wrapped, columns without room make a further table, and of very many rows those in the middle are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from textwrap import wrap

import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segments
from rich.text import Text

# A table of more rows is folded on a page, and at a terminal shows so many of its first and of its last ones.
LONG, ENDS = 30, 12
# Wider than any table: files and pipes have no width of their own.
UNLIMITED = 100_000


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
        groups: How many columns stay together, in order; the first group is repeated where others have no room beside
            it. None: all of them.
        unbroken: Places of the columns of words that are not wrapped either.
        folded: Whether a page shows the table only when asked for, however short it is.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Collection[int] = (0,)
    footer: Sequence[str] = ()
    rules: Collection[int] = ()
    groups: Sequence[int] = ()
    unbroken: Collection[int] = ()
    folded: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether a page shows the table only when asked for."""
        return self.folded or len(self.rows) > LONG


def print_table(console: Console, table: Table, whole: str = "") -> None:
    """Print a table; files and pipes get it as it is.

    Args:
        console: Where.
        table: The table.
        whole: The file that has all rows, if one has.
    """
    for part in _fitting(console, _shortened(table) if console.is_terminal else table):
        shown = as_rich(part)
        if _measured(console, shown).maximum > _room(console):
            shown = as_rich(part, narrow=True)
        room = console.options.update(width=max(_room(console), _measured(console, shown).minimum))
        console.print(Segments(console.render(shown, room)), soft_wrap=True, end="")
    if console.is_terminal and len(table.rows) > LONG:
        where = f"{whole} has them, and so has a pipe" if whole else "a pipe has them"
        print_text(console, f"{len(table.rows) - 2 * ENDS} rows of {len(table.rows)} are left out here; {where}.")


def as_rich(table: Table, narrow: bool = False) -> rich.table.Table:
    """For a terminal; where it is narrow, titles are wrapped as words are, but never numbers."""
    title = Text(table.caption, "table.title") if table.caption else None
    shown = rich.table.Table(title=title, show_footer=bool(table.footer))
    footer = table.footer or [""] * len(table.header)
    for place, (head, foot) in enumerate(zip(table.header, footer, strict=True)):
        lines = [line.text for row in table.rows for line in _lines(row[place])]
        width = max(map(cell_len, [*lines, foot, *head.split()]))
        unbroken = place not in table.words or place in table.unbroken
        if narrow and unbroken:
            head = "\n".join(part for line in head.split("\n") for part in wrap(line, width) or [""])
        shown.add_column(Text(head), Text(foot), overflow="fold", no_wrap=unbroken)
        shown.columns[place].justify = "left" if place in table.words else "right"
        shown.columns[place].min_width = width if unbroken else None
    for place, row in enumerate(table.rows):
        shown.add_row(*map(_text, row), end_section=place in table.rules)
    return shown


def _shortened(table: Table) -> Table:
    """The first and the last rows of a long table, with a line between them."""
    if len(table.rows) <= LONG:
        return table
    rows, left_out = [*table.rows[:ENDS], *table.rows[-ENDS:]], len(table.rows) - 2 * ENDS
    later = {rule - left_out for rule in table.rules if rule >= ENDS + left_out}
    return replace(table, rows=rows, rules={*(rule for rule in table.rules if rule < ENDS), ENDS - 1, *later})


def _fitting(console: Console, table: Table) -> Iterator[Table]:
    """As few tables as fit, each with the first group of columns and others."""
    ends = list(accumulate(table.groups))
    if len(ends) < 2:
        yield table
        return
    first, *others = [list(range(start, end)) for start, end in pairwise([0, *ends])]
    taken: list[int] = []
    for group in others:
        if taken and _measured(
            console, as_rich(_columns(table, [*first, *taken, *group]), narrow=True)
        ).minimum > _room(console):
            yield _columns(table, [*first, *taken])
            taken = []
        taken += group
    yield _columns(table, [*first, *taken])


def _columns(table: Table, places: Sequence[int]) -> Table:
    """A table of some of the columns."""
    return replace(
        table,
        header=[table.header[place] for place in places],
        rows=[[row[place] for place in places] for row in table.rows],
        footer=[table.footer[place] for place in places] if table.footer else (),
        words=[new for new, place in enumerate(places) if place in table.words],
        unbroken=[new for new, place in enumerate(places) if place in table.unbroken],
    )


def _room(console: Console) -> int:
    return console.width if console.is_terminal else UNLIMITED


def _measured(console: Console, table: rich.table.Table) -> Measurement:
    """The characters that a table takes: with words wrapped at every blank, and with none wrapped."""
    return Measurement.get(console, console.options.update(width=UNLIMITED), table)


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
