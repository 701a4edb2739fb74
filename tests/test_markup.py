"""Tables and lines on a terminal show texts as they are, whatever rich would take for markup."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import typer
from rich.console import Console
from typer.testing import CliRunner

from neuronmoe_plugins.cli import app, make_app, training
from neuronmoe_plugins.integrations.llamafactory import run_log
from neuronmoe_plugins.tables import Table, as_rich, print_text

MARKUP = "pip install 'neuronmoe-plugins[train]' [red]x[/red] [/y]"


def shown(show: Callable[[Console], None], width: int = 300) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_markup_is_shown_as_it_is() -> None:
    table = Table(MARKUP, [MARKUP], [[MARKUP]], footer=[MARKUP])
    assert shown(lambda console: console.print(as_rich(table))).count(MARKUP) == 4
    assert shown(lambda console: print_text(console, MARKUP), width=10) == f"{MARKUP}\n"


def test_a_word_without_room_goes_on_in_the_next_line_and_is_cut_where_lines_are_not_wrapped() -> None:
    table = Table("", ["a"], [["neuronmoe-plugins"]])
    for no_wrap, expected in ((), ["neuronmoe-", "plugins"]), ((0,), ["neuronmoe…"]):
        output = shown(lambda console, cut=no_wrap: console.print(as_rich(table, no_wrap=cut)), width=14)
        assert [line.strip("│ ") for line in output.splitlines() if line.startswith("│")] == expected


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
