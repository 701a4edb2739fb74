"""Post-import hooks for modules whose import has begun: what imports torch, and so this package, may be one itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

import wrapt

Hook = Callable[[ModuleType], None]

_hooks: dict[str, Hook] = {}


class _WatchedSpec(ModuleSpec):
    """The spec of a module that is being imported; to set `_initializing` to False is Python's last act in that."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "_initializing" and not value:
            super().__setattr__("__class__", ModuleSpec)
            run_after_import(_hooks.pop(self.name), self.name)


def run_after_import(hook: Hook, module_name: str) -> None:
    """Call `hook` with a module once it is imported: now, at the end of an import that has begun, or at a later one."""
    spec = getattr(sys.modules.get(module_name), "__spec__", None)
    if type(spec) is ModuleSpec and getattr(spec, "_initializing", False):
        _hooks[module_name] = hook
        spec.__class__ = _WatchedSpec  # type: ignore[assignment]
    else:
        wrapt.register_post_import_hook(hook, module_name)
