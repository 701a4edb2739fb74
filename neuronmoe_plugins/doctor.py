"""`neuronmoe doctor`: which hosts are here, whether they fit together and know `moe`, and what to do if not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from packaging.version import Version

from neuronmoe_plugins.autoload import HOOKS
from neuronmoe_plugins.errors import one_line
from neuronmoe_plugins.installed import HEAVY, Installed, allows, own_requirement
from neuronmoe_plugins.tested_sets import broken_versions, tested_versions


@dataclass(frozen=True)
class Finding:
    """What is known of a host: a program that this package extends, or trains and evaluates with.

    Attributes:
        host: As users know it.
        distribution: The name under which it is installed, or would be.
        version: What is installed, if anything.
        supported: Whether the version is; None for one that is newer than any tested, and where nothing is installed.
        hooked: Whether it knows `moe`; None where there is nothing to extend.
        reasons: What is wrong or to be known, each in one line.
        advice: What to do, in one line; for a host that is not installed, how to install it.
        healthy: Whether nothing is to be done; a host that is not installed is no fault.
    """

    host: str
    distribution: str
    version: str | None
    supported: bool | None
    hooked: bool | None
    reasons: list[str]
    advice: str | None
    healthy: bool


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found: hosts, what contradicts each other among them, and what to do about that."""

    hosts: list[Finding]
    conflicts: list[str]
    advice: str | None

    @property
    def healthy(self) -> bool:
        return not self.conflicts and all(finding.healthy for finding in self.hosts)


def _hooked_modules(package: str) -> tuple[str, ...]:
    return tuple(module for module in HOOKS if module.split(".")[0] == package)


HOSTS: dict[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "peft": _hooked_modules("peft"),
    "transformers": _hooked_modules("transformers"),
    "llamafactory": _hooked_modules("llamafactory"),
    "deepspeed": (),
    "lm-eval": (),
}
"""Distribution -> the modules to import to see whether it is hooked; none where there is nothing to hook."""

# transformers and LLaMA-Factory import these where they are installed, and fail if they are built for another torch.
COMPANIONS = ("torchvision", "torchaudio")

# Its modules come and go between releases: v1 knows no `moe` in some, which is no fault of the others' training.
EXPERIMENTAL = "llamafactory.v1."

# Runs in a process of its own that imports nothing of this package: what is hooked there is hooked for every program.
PROBE = """
import importlib, json, sys
errors = {}
for module in json.loads(sys.argv[1]):
    try:
        importlib.import_module(module)
    except Exception as error:
        lacks = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        errors[module] = {"lacks": lacks, "error": f"{type(error).__name__}: {error}"}
plugin = sys.modules.get("neuronmoe_plugins.autoload")
hooks = {} if plugin is None else plugin.outcomes
outcomes = {name: error and f"{type(error).__name__}: {error}" for name, error in hooks.items()}
sys.stdout.write("\\n" + json.dumps({"loaded": plugin is not None, "outcomes": outcomes, "errors": errors}))
"""


def examine() -> Diagnosis:
    """Look at every host, importing the installed ones in a fresh process (some seconds)."""
    installed = Installed.here()
    there = [host for host in HOSTS if installed.name_of(host)]
    companions = [name for name in COMPANIONS if name in installed.versions]
    probe = _probe([module for host in there for module in HOSTS[host]] + companions)
    broken = [_companion(name, installed, probe) for name in companions if name in probe["errors"]]
    conflicts = installed.conflicts()
    faults = {conflict.requirement.name for conflict in conflicts}
    faults |= {host for host in there if _support(host, installed)[0] is False}
    repair = _install(installed.repair(faults))
    if repair is None and conflicts:
        wanted = (each.requirement for each in conflicts)
        repair = "pip install " + " ".join(f"'{each.name}{each.specifier}'" for each in wanted)
    hosts = [_finding(host, installed, probe, repair) for host in HOSTS]
    doubles = [
        f"{host} {installed.versions[host]} is installed over {host}-kt {installed.versions[f'{host}-kt']}, and "
        f"llamafactory-kt refuses to start beside it: pip uninstall -y {host}, then pip install --force-reinstall "
        f"--no-deps {host}-kt=={installed.versions[f'{host}-kt']}"
        for host in installed.doubles()
    ]
    return Diagnosis([*hosts, *broken], [*map(str, conflicts), *doubles], repair if conflicts else None)


def _probe(modules: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-c", PROBE, json.dumps(modules)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        last_line = (result.stderr.strip().splitlines() or [f"the process ended with code {result.returncode}"])[-1]
        errors = {module: {"lacks": False, "error": last_line} for module in modules}
        return {"loaded": False, "outcomes": {}, "errors": errors}
    return json.loads(result.stdout.strip().splitlines()[-1])


def _finding(host: str, installed: Installed, probe: dict[str, Any], repair: str | None) -> Finding:
    """What the metadata and the probe say of a host; `repair` is what to do about unsupported versions."""
    name = installed.name_of(host)
    if name is None:
        how = f"pip install '{own_requirement(host)}'"
        if host not in HEAVY:
            how = _install(installed.repair([host])) or "no tested version goes with what is installed"
        return Finding(host, host, None, None, None, ["not installed"], how, True)
    version = installed.versions[name]
    supported, remark = _support(host, installed)
    problems = list(_problems(host, probe))
    faults = [line for line in problems if not line.startswith(EXPERIMENTAL)]
    core = [module for module in HOSTS[host] if not module.startswith(EXPERIMENTAL)]
    missing = [module for module in core if module in HOOKS and module not in probe["outcomes"]]
    hooked = bool(probe["loaded"]) and not faults and not missing if HOSTS[host] else None
    advice = None
    if supported is False:
        advice = repair or f"pip install '{own_requirement(host)}'"
    elif faults and Version(version) not in tested_versions(host):
        advice = _install(installed.repair([host]))
    elif hooked is False and not faults:
        advice = _why_not_loaded()
    reasons = [*([remark] if remark else []), *problems]
    healthy = supported is not False and hooked is not False
    return Finding(host, name, version, supported, hooked, reasons, advice, healthy)


def _support(host: str, installed: Installed) -> tuple[bool | None, str | None]:
    """Whether the version that is there is supported, None if it is newer than any tested; and a remark."""
    version = installed.versions[installed.name_of(host) or host]
    bounds = own_requirement(host).specifier
    if (why := broken_versions().get(host, {}).get(version)) is not None:
        return False, f"{version} does not work: {why}"
    if not allows(bounds, version):
        return False, f"{version} is not supported; supported is {bounds}"
    newest = tested_versions(host)[-1]
    if Version(version).release > newest.release:
        return None, f"newer than {newest}, the newest that was tested"
    return True, None


def _lacks(module: str, probe: dict[str, Any]) -> bool:
    return module.startswith(EXPERIMENTAL) and module in probe["errors"] and probe["errors"][module]["lacks"]


def _problems(host: str, probe: dict[str, Any]) -> Iterator[str]:
    """Why a host could not be imported or extended: each error once, with the first module that had it."""
    seen = set()
    for module in HOSTS[host]:
        failed = probe["errors"].get(module, {}).get("error") or probe["outcomes"].get(module)
        if failed and failed not in seen and not _lacks(module, probe):
            seen.add(failed)
            yield f"{module}: {one_line(failed)}"


def _companion(name: str, installed: Installed, probe: dict[str, Any]) -> Finding:
    """A companion of torch that cannot be imported; neither is needed for text."""
    torch = f"torch {installed.versions.get('torch')}"
    cure = f"pip uninstall -y {name}"
    spec = PathFinder.find_spec(name)  # not what this process may have imported
    compiled = Path(((spec and spec.submodule_search_locations) or [""])[0]) / "lib"
    if name == "torchaudio" and installed.name_of("llamafactory") and any(compiled.glob("*.so")):
        cure = f"rm {compiled}/*.so"  # LLaMA-Factory imports it in any case, and works without its compiled half
    advice = f"{cure}  # text needs none of it; for images and sound, install the build for {torch}"
    reason = f"cannot be imported beside {torch}: {one_line(probe['errors'][name]['error'])}"
    return Finding(name, name, installed.versions[name], False, None, [reason], advice, False)


def _install(changes: dict[str, str] | None) -> str | None:
    return "pip install " + " ".join(f"{name}=={version}" for name, version in changes.items()) if changes else None


def _why_not_loaded() -> str:
    for switch in ("NEURONMOE_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        if os.environ.get(switch) == "0":
            return f"{switch}=0 switches the autoload off; unset it, or `import neuronmoe_plugins` in your program"
    return "the entry point is missing; reinstall with pip install --force-reinstall --no-deps neuronmoe-plugins"
