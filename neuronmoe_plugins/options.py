"""Options, each declared once: as the field of a dataclass, which its checks and the command line are made from.

@dataclass(frozen=True)
class Request:
    model: str = option("Folder or hub name of the model.")
    samples: int | None = option("Sentences per language.", None, shown="500", check=at_least_one)

    def __post_init__(self) -> None:
        check_options(self)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias, get_args, get_type_hints

from neuronmoe_plugins.errors import UserError, did_you_mean
from neuronmoe_plugins.reading import shown

OptionCheck: TypeAlias = Callable[[str, Any], None]
"""Takes the option as it is typed ("--samples") and a value that is not None; raises `UserError` for a wrong one."""


@dataclass(frozen=True)
class Option:
    """What a field says of its option, beside its name, type and default.

    Attributes:
        help: What the command line says of it.
        shown: What is shown as its default, where the default is None.
        flag: How it is typed, without dashes, where that is not the field's name.
        metavar: Given, it is no option but an argument of that name.
        value: What the help has in place of its value, where that is not its type.
        after: The field of a base class behind which it is shown; otherwise it comes behind the one declared before it.
        split: Whether the command line takes several texts as one, with commas between.
        check: What its value must be.
    """

    help: str
    shown: str | None = None
    flag: str | None = None
    metavar: str | None = None
    value: str | None = None
    after: str | None = None
    split: bool = False
    check: OptionCheck | None = None


def option(help: str, default: Any = MISSING, *, kw_only: Any = MISSING, **more: Any) -> Any:
    """A dataclass' field that is an option; `more` as in `Option`. Without a default it is required."""
    return field(default=default, kw_only=kw_only, metadata={Option: Option(help, **more)})


def declared_options(record: Any) -> Iterator[tuple[Field[Any], Option]]:
    """The fields of a dataclass, or of an instance, that are options, and what they say."""
    return ((each, each.metadata[Option]) for each in fields(record) if Option in each.metadata)


def check_options(record: Any) -> None:
    """Run the declared checks on an instance's values that are not None; raises `UserError` naming the option."""
    for each, told in declared_options(record):
        value = getattr(record, each.name)
        if told.check is not None and value is not None:
            told.check(told.metavar or typed(told.flag or each.name), value)


def option_values(record: type, told: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """The values of options that a file names, as they are typed but for the dashes before them.

    Args:
        record: The dataclass.
        told: Option -> value; None stands for the default.
        given: Fields that no file may name.

    Returns:
        Field -> value of its type.

    Raises:
        UserError: for an option that there is not, and a value of another type, naming the option.
    """
    hints = get_type_hints(record)
    known = [each.name for each, _ in declared_options(record) if each.name not in given]
    values = {}
    for key, value in told.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UserError(f"unknown option {key!r}{did_you_mean(name, known)}")
        if value is not None:
            values[name] = _of_type(key, hints[name], value)
    return values


def _of_type(key: str, hint: Any, value: Any) -> Any:
    kind = next(each for each in (get_args(hint) or (hint,)) if each is not NoneType)
    if issubclass(kind, Enum):
        choices = [each.value for each in kind]
        if value not in choices:
            raise UserError(f"{key} is {shown(value)}; it must be one of {', '.join(choices)}")
        return kind(value)
    wanted = str if kind is Path else kind
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"{key} is {shown(value)}; it must be of the kind {wanted.__name__}")
    return kind(value)


def typed(name: str) -> str:
    """How the option of that name is typed: `top_n` as --top-n."""
    return f"--{name.replace('_', '-')}"


def at_least_one(flag: str, value: int) -> None:
    """Raise `UserError` for a number below 1."""
    if value < 1:
        raise UserError(f"{flag} is {value}; it must be at least 1")


def one_of(*choices: str) -> OptionCheck:
    """A check that a text, or each of several, is one of these."""

    def check(flag: str, value: str | list[str] | tuple[str, ...]) -> None:
        for each in (value,) if isinstance(value, str) else value:
            if each not in choices:
                raise UserError(f"unknown {flag} {each!r}; there are: {', '.join(choices)}")

    return check
