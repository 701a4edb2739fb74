"""Gives a command the options that a dataclass declares."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import typer

from neuronmoe_plugins.options import Option, declared_options, typed

Command: TypeAlias = Callable[..., None]
Maker: TypeAlias = Callable[..., Any]


def takes(record: type, **made: Maker) -> Callable[[Command], Command]:
    """Let typer see an option for every declared field of a dataclass, and give the command an instance.

    The command's parameter that is annotated with the dataclass gets the instance; its others are options of its own,
    shown before or behind the declared ones as they stand before or behind that parameter.

    Args:
        record: The dataclass.
        made: Name of a field -> what makes its value of what is typed. The first parameter has the type of what is
            typed for the field; others that are annotated as options are shown behind it, the rest are options by name.
    """

    def decorate(command: Command) -> Command:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        place = next(place for place, each in enumerate(own) if each.annotation is record)
        instance = own.pop(place).name

        @wraps(command)
        def run(**given: Any) -> None:
            values = {each.name: _value(each, told, given[each.name]) for each, told in declared_options(record)}
            for name, make in made.items():
                others = list(inspect.signature(make).parameters)[1:]
                values[name] = make(given[name], **{other: given[other] for other in others if other in given})
            command(**{instance: record(**values)}, **{each.name: given[each.name] for each in own})

        shown, behind = _placed(record, made)
        parameters = [*own[:place], *shown[:behind], *own[place:], *shown[behind:]]
        parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _placed(record: type, made: Mapping[str, Maker]) -> tuple[list[Parameter], int]:
    """The options in the order in which they are shown, and the place behind the last that is not inherited."""
    inherited = [name for base in record.__mro__[1:] for name in getattr(base, "__dataclass_fields__", ())]
    shown: list[str] = []
    groups: dict[str, list[Parameter]] = {}
    place = 0
    for each, told in sorted(declared_options(record), key=lambda pair: pair[0].name not in inherited):
        groups[each.name] = _parameters(record, each, told, made.get(each.name))
        if each.name in inherited:
            shown.append(each.name)
            continue
        place = shown.index(told.after) + 1 if told.after else place
        shown.insert(place, each.name)
        place += 1
    flat = [[parameter for name in names for parameter in groups[name]] for names in (shown[:place], shown[place:])]
    return flat[0] + flat[1], len(flat[0])


def _parameters(record: type, each: Field[Any], told: Option, make: Maker | None) -> list[Parameter]:
    """What a field is on the command line: one option, and those that its value is made of besides."""
    others: list[Parameter] = []
    if make is None:
        kind = _typed_kind(record, each, told)
    else:
        first, *rest = inspect.signature(make, eval_str=True).parameters.values()
        kind, others = first.annotation, [other for other in rest if hasattr(other.annotation, "__metadata__")]
    default = Parameter.empty if each.default is MISSING else None if each.default == () else each.default
    if told.metavar is not None:
        info = typer.Argument(metavar=told.metavar, help=told.help)
    else:
        # A name of its own, and a switch, which otherwise would have a --no-... too, are written out.
        flags = [typed(told.flag or each.name)] if told.flag or kind is bool else []
        info = typer.Option(*flags, metavar=told.value, help=told.help, show_default=told.shown or True)
    return [Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]), *others]


def _typed_kind(record: type, each: Field[Any], told: Option) -> Any:
    """The type of what is typed for a field: its own, but one text for several, or a list, which typer repeats."""
    owner = next(base for base in record.__mro__ if each.name in inspect.get_annotations(base))
    if told.split:
        return str if each.default is MISSING else str | None
    # By itself, since a field that is made may have a type that only checkers import.
    hint = eval(inspect.get_annotations(owner)[each.name], vars(sys.modules[owner.__module__]))
    return list[get_args(hint)[0]] | None if get_origin(hint) is tuple else hint  # type: ignore[misc]


def _value(each: Field[Any], told: Option, given: Any) -> Any:
    """The field's value of what was typed for it."""
    if given is None:
        return each.default
    if told.split:
        return tuple(given.split(","))
    return tuple(given) if isinstance(given, list) else given
