"""Finds plugins and collects what they register; the built-ins are plugins too.

A third-party plugin is a module (or object) with `hookimpl` functions, named by an entry point of the group
`neuronmoe_plugins`. Plugins are imported at the first question, not at import of this module.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from neuronmoe_plugins import hookspecs
from neuronmoe_plugins.errors import UserError

if TYPE_CHECKING:
    from neuronmoe_plugins.allocation.strategies import AllocationStrategy
    from neuronmoe_plugins.feed_forward.family import FeedForwardFamily
    from neuronmoe_plugins.neurons.metrics import Metric

BUILT_IN = (
    "neuronmoe_plugins.neurons.builtin",
    "neuronmoe_plugins.allocation.builtin",
    "neuronmoe_plugins.feed_forward.builtin",
)


@cache
def plugin_manager() -> pluggy.PluginManager:
    """The manager with all plugins loaded; raises `UserError` naming the plugin that cannot be loaded."""
    manager = pluggy.PluginManager(hookspecs.NAMESPACE)
    manager.add_hookspecs(hookspecs)
    for name in BUILT_IN:
        manager.register(importlib.import_module(name), name=name)
    for entry_point in importlib.metadata.entry_points(group=hookspecs.NAMESPACE):
        _register_entry_point(manager, entry_point)
    return manager


def _register_entry_point(manager: pluggy.PluginManager, entry_point: importlib.metadata.EntryPoint) -> None:
    try:
        manager.register(entry_point.load(), name=entry_point.name)
        manager.check_pending()
    except Exception as error:  # whatever a third party's import raises
        raise UserError(
            f"plugin {entry_point.name} ({entry_point.value}) cannot be loaded: {type(error).__name__}: {error}; "
            "fix or uninstall it"
        ) from error


def metrics() -> dict[str, Metric]:
    """All neuron metrics by name."""
    return _collect(plugin_manager().hook.register_metrics, "metric")


def allocation_strategies() -> dict[str, AllocationStrategy]:
    """All allocation strategies by name."""
    return _collect(plugin_manager().hook.register_allocation_strategies, "allocation strategy")


def feed_forward_families() -> dict[str, FeedForwardFamily]:
    """All feed-forward families by name."""
    return _collect(plugin_manager().hook.register_feed_forward_families, "feed-forward family")


def _collect(hook: Callable[..., Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def register(name: str, thing: Any) -> None:
        if name in found:
            raise UserError(f"two plugins register the {kind} {name!r}; uninstall one of them")
        found[name] = thing

    hook(register=register)
    return dict(sorted(found.items()))


def choose(kind: str, name: str, known: dict[str, Any]) -> Any:
    """The entry of `known` called `name`; raises `UserError` listing the names there are."""
    if name not in known:
        raise UserError(f"unknown {kind} {name!r}; there are: {', '.join(known)}")
    return known[name]
