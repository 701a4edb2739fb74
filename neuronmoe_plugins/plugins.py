"""Finds plugins and collects what they register; this package is a plugin too, the first.

A third-party plugin is a module (or object) with `hookimpl` functions, named by an entry point of the group
`neuronmoe_plugins`. Plugins are imported at the first question, not at import of this module.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pluggy

from neuronmoe_plugins import hookspecs
from neuronmoe_plugins.errors import UserError, one_line

BUILT_IN = "neuronmoe_plugins.builtin"


@dataclass(frozen=True)
class Plugin:
    """An installed plugin.

    Attributes:
        name: Its entry point's name.
        source: What is loaded, as "module" or "module:object".
        package: The distribution that brings it and its version, "greek-metrics 1.2"; "-" if not known.
        problem: Why it cannot be loaded, in one line; None if it is.
    """

    name: str
    source: str
    package: str
    problem: UserError | None = None


class PluginManager(pluggy.PluginManager):
    """pluggy's manager with all plugins that can be loaded, and a list of all that are installed."""

    def __init__(self) -> None:
        super().__init__(hookspecs.NAMESPACE)
        self.add_hookspecs(hookspecs)
        self.register(importlib.import_module(BUILT_IN), name="built-in")
        own = f"neuronmoe-plugins {importlib.metadata.version('neuronmoe-plugins')}"
        self.installed = [Plugin("built-in", BUILT_IN, own)]
        for entry_point in importlib.metadata.entry_points(group=hookspecs.NAMESPACE):
            self.installed.append(self._install(entry_point))

    def _install(self, entry_point: importlib.metadata.EntryPoint) -> Plugin:
        distribution = getattr(entry_point, "dist", None)
        package = "-" if distribution is None else f"{distribution.name} {distribution.version}"
        plugin = Plugin(entry_point.name, entry_point.value, package)
        name = None
        try:
            name = self.register(entry_point.load(), name=entry_point.name)
            self.check_pending()
        except Exception as error:  # whatever a third party's import raises
            if name is not None:
                self.unregister(name=name)
            problem = f"cannot be loaded: {type(error).__name__}: {one_line(error)}; fix or uninstall it"
            return replace(plugin, problem=UserError(f"plugin {plugin.name} ({plugin.source}) {problem}"))
        return plugin

    def registrations(self, name: str, kind: str) -> dict[str, Any]:
        """What the plugin called `name` alone registers of a kind, in its order; `UserError` naming it if it fails."""
        found: dict[str, Any] = {}
        try:
            for implementation in getattr(self.hook, hookspecs.HOOKS[kind]).get_hookimpls():
                if implementation.plugin_name == name:
                    implementation.function(*[partial(_add, found, kind) for _ in implementation.argnames])
        except UserError:
            raise
        except Exception as error:  # whatever a third party's function raises
            problem = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"plugin {name} cannot register a {kind}: {problem}; fix or uninstall it") from error
        return found


@cache
def plugin_manager() -> PluginManager:
    """The manager, with all plugins loaded that can be."""
    return PluginManager()


def registered(kind: str) -> dict[str, Any]:
    """All that plugins register of a kind ("metric", or another of `hookspecs.HOOKS`) by name, this package's first.

    Raises:
        UserError: if any plugin cannot be loaded, as it might register what is asked for; or two register one name.
    """
    manager = plugin_manager()
    for plugin in manager.installed:
        if plugin.problem is not None:
            raise plugin.problem
    found: dict[str, Any] = {}
    for plugin_name, _ in manager.list_name_plugin():
        for name, thing in manager.registrations(plugin_name, kind).items():
            _add(found, kind, name, thing)
    return found


def usable(kind: str) -> dict[str, Any]:
    """As `registered`, without what is in trouble, and the earlier of two with one name: raises nothing."""
    manager = plugin_manager()
    found: dict[str, Any] = {}
    for plugin in manager.installed:
        with suppress(UserError):
            for name, thing in manager.registrations(plugin.name, kind).items():
                found.setdefault(name, thing)
    return found


def describe_plugins() -> list[tuple[Plugin, dict[str, list[str]]]]:
    """All installed plugins, each with the names that it registers, by kind; its problem, if it has one, says why none.

    Imports what plugins register; raises nothing.
    """
    manager = plugin_manager()
    described: list[tuple[Plugin, dict[str, list[str]]]] = []
    for plugin in manager.installed:
        names: dict[str, list[str]] = {}
        if plugin.problem is None:
            try:
                names = {kind: list(manager.registrations(plugin.name, kind)) for kind in hookspecs.HOOKS}
            except UserError as error:
                plugin = replace(plugin, problem=error)
        described.append((plugin, {kind: own for kind, own in names.items() if own}))
    return described


def _add(found: dict[str, Any], kind: str, name: str, thing: Any) -> None:
    if name in found:
        raise UserError(f"two plugins register the {kind} {name!r}; uninstall one of them")
    found[name] = thing


def choose(kind: str, name: str, known: dict[str, Any]) -> Any:
    """The entry of `known` called `name`; raises `UserError` listing the names there are."""
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; there are: {', '.join(known)}")
    return known[name]
