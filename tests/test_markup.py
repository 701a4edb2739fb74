"""Tables and lines on a terminal show texts as they are, whatever rich would take for markup."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import typer
from rich.console import Console
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app, make_app, training
from neuronmoe_plugins.integrations.llamafactory import run_log
from neuronmoe_plugins.tables import Table, as_rich, print_table, print_text

MARKUP = "pip install 'neuronmoe-plugins[train]' [red]x[/red] [/y]"


def shown(show: Callable[[Console], None], width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(output: str) -> list[list[str]]:
    """What stands in a table's body, line by line."""
    return [[cell.strip() for cell in line[1:-1].split("│")] for line in output.splitlines() if line.startswith("│")]


def terminal(table: Table, width: int, whole: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(console, table, whole)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markup_is_shown_as_it_is() -> None:
    table = Table(MARKUP, [MARKUP], [[MARKUP]], footer=[MARKUP])
    assert shown(lambda console: console.print(as_rich(table))).count(MARKUP) == 4
    assert shown(lambda console: print_text(console, MARKUP), width=10) == f"{MARKUP}\n"


def test_a_word_without_room_goes_on_in_the_next_line() -> None:
    table = Table("", ["a"], [["neuronmoe-plugins"]])
    output = shown(lambda console: console.print(as_rich(table)), width=14)
    assert cells(output) == [["neuronmoe-"], ["plugins"]]


NUMBERS = Table(
    "", ["who and what", "one", "two", "three"], [["a b", "1,234,567", "2,345,678", "3,456,789"]], groups=[1, 1, 2]
)


def test_a_narrow_terminal_gets_further_tables_and_no_number_is_broken() -> None:
    wide, narrow = terminal(NUMBERS, 80), terminal(NUMBERS, 32)
    assert cells(wide) == [["a b", "1,234,567", "2,345,678", "3,456,789"]]
    assert cells(narrow) == [["a b", "1,234,567"], ["a b", "2,345,678", "3,456,789"]]
    assert max(map(len, narrow.splitlines())) <= 32
    # Wider than the terminal rather than cut.
    assert cells(terminal(NUMBERS, 10)) == cells(narrow)
    stream = io.StringIO()
    print_table(Console(file=stream, width=10), NUMBERS)
    assert cells(stream.getvalue()) == cells(wide), "a pipe has no width"


def test_a_terminal_leaves_out_the_middle_of_a_long_table() -> None:
    table = Table("", ["layer"], [[str(layer)] for layer in range(80)], words=(), footer=["all"], rules=[5, 40, 75])
    lines = terminal(table, 80, "run/allocation.yaml").splitlines()
    assert lines[-1] == "56 rows of 80 are left out here; run/allocation.yaml has them, and so has a pipe."
    assert cells("\n".join(lines)) == [[str(layer)] for layer in (*range(12), *range(68, 80), "all")]
    below = [lines[place - 1].strip("│ ") for place, line in enumerate(lines) if line.startswith("├")]
    assert below == ["5", "11", "75", "79"]
    stream = io.StringIO()
    print_table(Console(file=stream, width=80), table)
    assert len(cells(stream.getvalue())) == 81
    assert len(cells(terminal(replace(table, rows=table.rows[:30], rules=()), 80))) == 31


def fail() -> None:
    raise ImportError("[b]no[/b]")


def test_names_of_users_in_the_tables_of_commands(install_plugins: Callable[..., None]) -> None:
    numbers = dict.fromkeys(("documents", "characters", "bytes"), 1000)
    entry: dict[str, Any] = {"name": "el[train]", "language": "el", "role": "[b]target", "tokens": None, **numbers}
    output = shown(lambda console: console.print(as_rich(training._data_table([entry]))))
    assert [cell.strip() for cell in output.splitlines()[3].strip("│").split("│")] == [
        *("el[train]", "el", "[b]target", "1,000", "1,000", "1,000", "-")
    ]
    install_plugins(SimpleNamespace(name="mine[a]", value="mine:plugin", load=fail))
    output = CliRunner().invoke(make_app(), ["plugins"], env={"COLUMNS": "300"}).output
    assert "mine[a]" in output and "[b]no[/b]" in output


def test_the_tables_of_a_run() -> None:
    from rich.table import Table as RichTable

    table = RichTable("optimizer")
    table.add_row("adamw[/x]")
    assert "adamw[/x]" in run_log.as_text(table)


def test_no_help_has_what_rich_takes_for_markup() -> None:
    """typer shows help as markup."""
    from rich.text import Text

    for command in typer.main.get_group(app).commands.values():
        for text in (command.help, *(getattr(each, "help", None) for each in command.params)):
            assert text is None or Text.from_markup(text).plain == text
