"""What is installed beside this package: versions, hosts that contradict each other, and the nearest tested versions.

Read from the metadata of the distributions; nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from neuronmoe_plugins.tested_sets import DISTRIBUTIONS, HostSet, tested_sets

OWN = "neuronmoe-plugins"
TWIN = "-kt"
"""Ends the names under which KTransformers installs LLaMA-Factory and its hosts, in their places."""
HEAVY = ("torch", "deepspeed", "lm-eval")
"""Not pinned for the sake of others."""


@dataclass(frozen=True)
class Conflict:
    """A distribution whose bounds forbid what is installed.

    Attributes:
        distribution: Whose bounds.
        version: Its version.
        requirement: The bound.
        installed: The version that is there of what it is about.
    """

    distribution: str
    version: str
    requirement: Requirement
    installed: str

    def __str__(self) -> str:
        name, wanted = self.requirement.name, self.requirement.specifier
        return f"{self.distribution} {self.version} asks for {name}{wanted}, but {name} {self.installed} is installed"


@dataclass(frozen=True)
class Installed:
    """Distributions of this Python, of the hosts and what they share.

    Attributes:
        versions: Canonical name -> version.
        requirements: Canonical name -> what it asks for among the hosts.
    """

    versions: Mapping[str, str]
    requirements: Mapping[str, Sequence[Requirement]]

    @classmethod
    def here(cls) -> Installed:
        """As the metadata on `sys.path` say; the first of two with one name counts."""
        versions: dict[str, str] = {}
        requirements: dict[str, list[Requirement]] = {}
        for distribution in importlib.metadata.distributions():
            told = distribution.metadata  # parsed anew each time
            name = canonicalize_name(told["Name"] or "")
            if name and name not in versions:
                versions[name] = told["Version"]
                requirements[name] = _requirements(told.get_all("Requires-Dist") or ())
        return cls(versions, requirements)

    def name_of(self, host: str) -> str | None:
        """Under which name a host is installed: its own or KTransformers', or None."""
        return next((name for name in (host, host + TWIN) if name in self.versions), None)

    def doubles(self) -> list[str]:
        """Hosts that are installed under both names, the one over the other."""
        return [host for host in DISTRIBUTIONS if host in self.versions and host + TWIN in self.versions]

    def conflicts(self, changes: Mapping[str, str] | None = None, askers: Collection[str] = ()) -> list[Conflict]:
        """Bounds that what is installed breaks.

        Args:
            changes: Versions that are to be installed; what these ask for is not known, so they ask for nothing.
            askers: Whose bounds count; those of the hosts if empty.
        """
        changes = changes or {}
        counted = askers or [name for host in DISTRIBUTIONS for name in (host, host + TWIN)]
        found = []
        for name in counted:
            for requirement in () if name in changes else self.requirements.get(name, ()):
                there = changes.get(requirement.name, self.versions.get(requirement.name))
                if there is not None and not allows(requirement.specifier, there):
                    found.append(Conflict(name, self.versions[name], requirement, there))
        return found

    def repair(self, faults: Collection[str]) -> dict[str, str] | None:
        """Versions to install in place of those at fault, which everything else that is installed allows.

        They are of the tested set that is nearest to what is installed, so far as they differ from it.

        Args:
            faults: Hosts that are missing, or of which another version is needed.

        Returns:
            Host -> version; None if no tested set fits, and for KTransformers' hosts, which go only with each other.
        """
        if not faults or any(host + TWIN in self.versions for host in DISTRIBUTIONS):
            return None
        candidates = []
        # First what is at fault alone. What a new LLaMA-Factory asks for is not known here: its whole set is installed.
        others = [host for host in DISTRIBUTIONS if host not in HEAVY and host in self.versions]
        extents = [others] if "llamafactory" in faults else [[], others]
        for extent in extents:
            for tested in reversed(tested_sets()):  # of two as near, the newer
                changes = self._changes(tested, faults, extent)
                if changes is not None:
                    candidates.append((self._distance(tested, changes, faults), changes))
        return min(candidates, key=lambda pair: pair[0])[1] if candidates else None

    def _changes(self, tested: HostSet, faults: Collection[str], others: Collection[str]) -> dict[str, str] | None:
        """What to install of a set, of what is at fault and of some others; None if it does not fit."""
        lacking = {*faults, *(["llamafactory"] if "llamafactory" in self.versions else [])} - tested.pins.keys()
        names = {*faults, *others} & tested.pins.keys()
        changes = {name: tested.pins[name] for name in sorted(names) if not self._has(name, tested.pins[name])}
        cannot = "llamafactory" in changes and (tested.from_source or sys.version_info < (3, 11))
        touched = {*changes, *faults}
        broken = [each for each in self.conflicts(changes, self.versions) if each.requirement.name in touched]
        return None if lacking or cannot or broken or not changes else changes

    def _has(self, name: str, version: str) -> bool:
        return name in self.versions and Version(self.versions[name]).public == Version(version).public

    def _distance(self, tested: HostSet, changes: Mapping[str, str], faults: Collection[str]) -> tuple[Any, ...]:
        """What would change, by how much (a newer version before an older one), and what else differs."""
        steps = [_step(self.versions.get(name), tested.pins[name]) for name in sorted(faults)]
        differing = sum(not self._has(name, pin) for name, pin in tested.pins.items() if name in self.versions)
        return len(changes), steps, differing


def own_requirement(distribution: str) -> Requirement:
    """What this package's metadata ask for, or one of its extras does, of a distribution; anything if they do not."""
    found = [Requirement(line.partition(";")[0]) for line in importlib.metadata.requires(OWN) or ()]
    return next((each for each in found if canonicalize_name(each.name) == distribution), Requirement(distribution))


def allows(bounds: SpecifierSet, version: str) -> bool:
    """Whether a version is within bounds, of which a build from source may be one."""
    return bounds.contains(version, prereleases=True)


def _requirements(lines: Sequence[str]) -> list[Requirement]:
    """What a distribution asks for among the hosts, without its extras."""
    names = {name for host in DISTRIBUTIONS for name in (host, host + TWIN)}
    found = []
    for line in lines:
        if canonicalize_name(re.split(r"[^\w.-]", line, maxsplit=1)[0]) not in names:
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.name = canonicalize_name(requirement.name)
            found.append(requirement)
    return found


def _step(installed: str | None, pinned: str) -> tuple[int, ...]:
    """Sorts the versions above what is installed first, and on either side the nearest first."""
    here, there = Version(installed or "9999"), Version(pinned)  # what is missing comes in its newest version
    return (0, *there.release) if there >= here else (1, *(-number for number in there.release))
