"""The sets of hosts that the tests run with, and versions that are known not to work: `tested_sets.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from neuronmoe_plugins.reading import Fields, Reader, filled_text, must_be, read_yaml

TABLE = Path(__file__).with_name("tested_sets.yaml")
DISTRIBUTIONS = (
    *("torch", "transformers", "peft", "llamafactory", "accelerate", "datasets", "trl", "deepspeed"),
    "lm-eval",
)
"""What a set may pin, in the order in which it is shown."""


@dataclass(frozen=True)
class HostSet:
    """Versions that are tested together.

    Attributes:
        name: Of the set, as in `make test-hosts SETS=name`.
        python: Python's version, as "3.11".
        pins: Version of each distribution that is pinned.
        passed: The day on which all that runs in it last passed, as "2026-03-05"; None before that.
    """

    name: str
    python: str
    pins: Mapping[str, str]
    passed: str | None

    @property
    def from_source(self) -> bool:
        """Whether its LLaMA-Factory is on no package index, and is installed from a folder with its source."""
        return "llamafactory" in self.pins and Version(self.pins["llamafactory"]).is_devrelease

    @property
    def runs(self) -> tuple[str, ...]:
        """What runs in it: the tuner, LLaMA-Factory's training, lm-eval's evaluation."""
        training = ("training",) if "llamafactory" in self.pins else ()
        evaluation = ("evaluation",) if "lm-eval" in self.pins else ()
        return ("tuner", *training, *evaluation)


@cache
def tested_sets() -> tuple[HostSet, ...]:
    """All sets, the oldest hosts first; raises `UserError` if the table is wrong."""
    return tuple(_read_set(name, value) for name, value in _table().required("sets").items())


@cache
def broken_versions() -> Mapping[str, Mapping[str, str]]:
    """Distribution -> version -> why it does not work."""
    return _of_distributions(_table().required("broken"), f"{TABLE}: broken", _reasons)


def tested_versions(distribution: str) -> list[Version]:
    """The versions of a distribution in all sets, in their order."""
    return sorted({Version(own.pins[distribution]) for own in tested_sets() if distribution in own.pins})


def _table() -> Fields:
    return Fields(read_yaml(TABLE), str(TABLE), ("sets", "broken"))


def _read_set(name: str, value: object) -> HostSet:
    where = f"{TABLE}: {name}"
    fields = Fields(value, where, ("python", "pins", "passed"))
    pins = _of_distributions(fields.required("pins"), f"{where}: pins", _version)
    return HostSet(name, fields.required("python", filled_text), pins, fields.optional("passed", filled_text))


def _of_distributions(value: object, where: str, read: Reader) -> dict[str, Any]:
    fields = Fields(value, where, DISTRIBUTIONS)
    return {name: fields.required(name, read) for name in DISTRIBUTIONS if fields.has(name)}


def _is_version(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


_version = must_be("a version", _is_version)
_reasons = must_be(
    "versions, each with a reason", lambda value: isinstance(value, dict) and all(map(_is_version, value))
)
