"""Options that a dataclass declares: checked by it, and built into a command with `takes`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from neuronmoe_plugins.cli.options import takes
from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.options import at_least_one, check_options, one_of, option


class Colour(str, Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Shared:
    size: int | None = option("How large.", None, shown="any", check=at_least_one)
    loud: bool = option("Whether it is heard.", False)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Request(Shared):
    place: str = option("Where.", metavar="PLACE")
    names: tuple[str, ...] = option("Who; may be repeated.", (), flag="name", value="WHO")
    parts: tuple[str, ...] | None = option("Which.", None, split=True, check=one_of("a", "b"))
    total: int = option("Made of two numbers.", 0, flag="first")
    colour: Colour | None = option("Painted.", None, after="size")
    hidden: int = 7


def add(first: int | None, second: Annotated[int, typer.Option(help="More.")] = 0, size: int | None = None) -> int:
    return (first or 0) + second + (size or 0)


@takes(Request, total=add)
def command(
    output: Annotated[str, typer.Option(help="Whither.")],
    request: Request,
    figure: Annotated[str | None, typer.Option(help="A picture.")] = None,
) -> None:
    """Do it."""
    typer.echo(repr((output, request, figure)))


def run(*arguments: str) -> tuple[str, BaseException | None]:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [*arguments])
    return result.output.strip(), result.exception


def test_every_field_is_an_option_with_its_default() -> None:
    assert run("here", "--output", "o") == (repr(("o", Request("here"), None)), None)


def test_values_reach_their_fields() -> None:
    typed = ["here", "--output", "o", "--name", "x", "--name", "y", "--parts", "a,b", "--colour", "blue", "--loud"]
    typed += ["--size", "3", "--first", "1", "--second", "2", "--figure", "f"]
    expected = Request("here", ("x", "y"), ("a", "b"), 6, Colour.BLUE, size=3, loud=True)
    assert run(*typed) == (repr(("o", expected, "f")), None)


def test_own_fields_come_before_inherited_ones_and_where_they_say() -> None:
    text = run("--help")[0]
    assert re.search(r"--name +WHO ", text)
    flags = ["--output", "--name", "--parts", "--first", "--second", "--size", "--colour", "--figure", "--loud"]
    assert sorted(flags, key=text.index) == flags
    assert "(any)" in text
    assert "--no-loud" not in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    ("typed", "message"),
    [("--size 0", "--size is 0; it must be at least 1"), ("--parts a,c", "unknown --parts 'c'; there are: a, b")],
)
def test_wrong_values_are_named_as_they_are_typed(typed: str, message: str) -> None:
    error = run("here", "--output", "o", *typed.split())[1]
    assert isinstance(error, UserError)
    assert str(error) == message
