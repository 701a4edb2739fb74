"""Stand-ins for the functions of hosts: the one way in which this package wraps them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import wrapt


class Call:
    """A call of a host's function, which a stand-in answers in its place.

    Args:
        wrapped: The host's function, or the bound method.
        instance: The object whose method it is; None for a function.
        args: The call's positional arguments.
        kwargs: The call's keyword arguments.
    """

    def __init__(
        self, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.instance = instance
        self._wrapped, self._args, self._kwargs = wrapped, args, kwargs

    @cached_property
    def _bound(self) -> inspect.BoundArguments:
        return inspect.signature(self._wrapped).bind(*self._args, **self._kwargs)

    @cached_property
    def _collector(self) -> str | None:
        """The parameter that collects the keywords without one of their own."""
        parameters = self._bound.signature.parameters.values()
        return next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)

    @property
    def arguments(self) -> dict[str, Any]:
        """Name -> value of every argument that the host has passed."""
        named = dict(self._bound.arguments)
        return named | named.pop(self._collector or "", {})

    def host(self, **changed: Any) -> Any:
        """The host's own answer, as it asked, or with some of the arguments changed or added."""
        if not changed:
            return self._wrapped(*self._args, **self._kwargs)
        arguments = self._bound.arguments
        for name, value in changed.items():
            if name in self._bound.signature.parameters:
                arguments[name] = value
            else:
                arguments[str(self._collector)] = {**arguments.get(str(self._collector), {}), name: value}
        return self._wrapped(*self._bound.args, **self._bound.kwargs)


StandIn = Callable[[Call], Any]


def wrap(module: ModuleType, stand_ins: Mapping[str, StandIn]) -> None:
    """Let stand-ins answer every call of a module's functions: all of them, or none where the host is another.

    Args:
        module: The host's module.
        stand_ins: `function(parameter, ...)` or `Class.method(...)`, with the parameters that the stand-in reads or
            sets, which the host's must have -> the stand-in.

    Raises:
        AttributeError: naming the function or the parameter that the module lacks.
    """
    for signature in stand_ins:
        _check(module, signature)
    for signature, stand_in in stand_ins.items():
        wrapt.wrap_function_wrapper(module, function_of(signature), partial(_answer, stand_in))


def function_of(signature: str) -> str:
    """`Class.method` of `Class.method(parameter, ...)`."""
    return signature.partition("(")[0]


def _check(module: ModuleType, signature: str) -> None:
    parent, attribute, _ = wrapt.resolve_path(module, function_of(signature))
    parameters = inspect.signature(getattr(parent, attribute)).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in re.findall(r"\w+", signature.partition("(")[2]):
        if name not in parameters:
            raise AttributeError(f"{module.__name__}.{function_of(signature)} has no parameter {name!r}")


def _answer(
    stand_in: StandIn, wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return stand_in(Call(wrapped, instance, args, kwargs))
