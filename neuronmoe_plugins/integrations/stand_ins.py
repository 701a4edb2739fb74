"""Stand-ins for the functions of hosts: the one way in which this package wraps them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from types import ModuleType
from typing import Any

import wrapt

from neuronmoe_plugins.errors import UserError, one_line


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


def wrap(module: ModuleType, name: str, stand_in: StandIn) -> None:
    """Let `stand_in` answer every call of a function of a module, or of a method, `Class.method`."""

    def wrapper(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return stand_in(Call(wrapped, instance, args, kwargs))

    wrapt.wrap_function_wrapper(module, name, wrapper)


def refusal_of_moe(name: str, error: Exception) -> UserError:
    """What to raise where `moe` is asked for, and a hook that it needs has failed.

    Args:
        name: The host's module that could not be extended.
        error: Why.
    """
    return UserError(
        f"finetuning_type: moe cannot run: neuronmoe-plugins cannot extend {name} ({type(error).__name__}: "
        f"{one_line(error)}); run `neuronmoe doctor`"
    )
