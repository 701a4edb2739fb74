"""`neuronmoe doctor`: which hosts are here, whether they are supported, and whether they know `moe`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from neuronmoe_plugins.autoload import HOOKS


@dataclass(frozen=True)
class Host:
    """A program that this package extends, or trains and evaluates with.

    Attributes:
        name: As users know it.
        distribution: Its name on the package index.
        supported: Versions that the tests cover.
        modules: Modules to import to see whether it is hooked; none where there is nothing to hook.
        install: What to type to get a supported version.
    """

    name: str
    distribution: str
    supported: SpecifierSet
    modules: tuple[str, ...]
    install: str


@dataclass(frozen=True)
class Finding:
    """One row of the report."""

    host: Host
    version: str | None
    is_supported: bool
    hooked: bool | None
    advice: str

    @property
    def healthy(self) -> bool:
        """Whether nothing is to be done; a host that is not installed is no fault."""
        return self.version is None or (self.is_supported and self.hooked is not False)


def _hooked_modules(package: str) -> tuple[str, ...]:
    return tuple(module for module in HOOKS if module.split(".")[0] == package)


HOSTS = (
    Host("torch autoload", "torch", SpecifierSet(">=2.5"), ("torch",), "pip install 'torch>=2.5'"),
    Host("peft", "peft", SpecifierSet(">=0.18.1,<0.22"), _hooked_modules("peft"), "pip install peft==0.18.1"),
    Host(
        "transformers",
        "transformers",
        SpecifierSet(">=5.0,<6"),
        _hooked_modules("transformers"),
        "pip install transformers==5.5.0",
    ),
    Host(
        "llamafactory",
        "llamafactory",
        SpecifierSet("==0.9.5"),
        _hooked_modules("llamafactory"),
        "pip install 'neuronmoe-plugins[train]'",
    ),
    Host("deepspeed", "deepspeed", SpecifierSet(">=0.15"), (), "pip install 'neuronmoe-plugins[deepspeed]'"),
    Host("lm-eval", "lm_eval", SpecifierSet(">=0.4.11,<0.5"), (), "pip install 'neuronmoe-plugins[eval]'"),
)

# Runs in a process of its own that imports nothing of this package: what is hooked there is hooked for every program.
PROBE = """
import importlib, json, sys
errors = {}
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except Exception as error:
        errors[module] = f"{type(error).__name__}: {error}"
plugin = sys.modules.get("neuronmoe_plugins.autoload")
outcomes = {} if plugin is None else {name: error and str(error) for name, error in plugin.outcomes.items()}
sys.stdout.write("\\n" + json.dumps({"loaded": plugin is not None, "outcomes": outcomes, "errors": errors}))
"""


def examine() -> list[Finding]:
    """Look at every host, importing the installed ones in a fresh process (some seconds)."""
    versions = {host.name: _version(host.distribution) for host in HOSTS}
    modules = [module for host in HOSTS if versions[host.name] is not None for module in host.modules]
    probe = _probe(modules)
    return [_finding(host, versions[host.name], probe) for host in HOSTS]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _probe(modules: list[str]) -> dict[str, dict[str, str | None] | bool]:
    command = [sys.executable, "-c", PROBE, json.dumps(modules)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or ["no output"])[-1]
        return {"loaded": False, "outcomes": {}, "errors": dict.fromkeys(modules, last_line)}
    return json.loads(result.stdout.strip().splitlines()[-1])


def _finding(host: Host, version: str | None, probe: dict) -> Finding:
    if version is None:
        return Finding(host, None, False, None, f"not installed; {host.install}")
    supported = host.supported.contains(version, prereleases=True)
    problems = [f"{m}: {probe['errors'][m]}" for m in host.modules if m in probe["errors"]]
    problems += [f"{m}: {probe['outcomes'][m]}" for m in host.modules if probe["outcomes"].get(m)]
    missing = [m for m in host.modules if m in HOOKS and m not in probe["outcomes"]]
    hooked = bool(probe["loaded"]) and not problems and not missing if host.modules else None
    if not supported:
        advice = f"tested with {host.supported}; {host.install}"
    elif problems:
        advice = problems[0]
    elif hooked is False:
        advice = _why_not_loaded()
    else:
        advice = "nothing"
    return Finding(host, version, supported, hooked, advice)


def _why_not_loaded() -> str:
    for switch in ("NEURONMOE_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        if os.environ.get(switch) == "0":
            return f"{switch}=0 switches the autoload off; unset it, or `import neuronmoe_plugins` in your program"
    return "the entry point is missing; reinstall with pip install --force-reinstall --no-deps neuronmoe-plugins"
