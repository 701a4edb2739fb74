"""How many experts each layer gets, and what that follows from: `allocation.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from neuronmoe_plugins.errors import UserError
from neuronmoe_plugins.files import write_text


@dataclass(frozen=True)
class Allocation:
    """Experts per decoder layer; the base MLP counts as one, so 1 leaves a layer dense."""

    num_experts: list[int]
    layer_scores: list[float]
    min_experts: int
    max_experts: int
    rounding: str
    strategy: str
    source: str | None
    targets: list[str]
    scores_from: str
    """The analysis folder or scores file, as it was named."""
    note: str | None = None
    """Why the experts are what they are, where that needs saying."""
    total_experts: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total_experts", sum(self.num_experts))

    def save(self, path: Path) -> None:
        """Write `allocation.yaml`; an earlier one is replaced only by a complete one."""
        content = asdict(self)
        ordered = {"num_experts": content.pop("num_experts"), "total_experts": content.pop("total_experts"), **content}
        text = yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
        try:
            write_text(path, text)
        except OSError as error:
            raise UserError(f"--output {path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Allocation:
        """Read and check `allocation.yaml`; raises `UserError` naming the file and the key that is wrong."""
        content = {"note": None} | _read_mapping(path)
        expected = {f.name for f in fields(cls)}
        if missing := sorted(expected - content.keys()):
            raise UserError(f"{path} lacks {', '.join(missing)}; write it with `neuronmoe allocate`")
        if unknown := sorted(map(str, content.keys() - expected)):
            raise UserError(f"{path} has the unknown key(s) {', '.join(unknown)}; remove them")
        for key, (is_valid, meaning) in CHECKS.items():
            if not is_valid(content[key]):
                raise UserError(f"{path}: {key} is {content[key]!r}; it must be {meaning}")
        total = content.pop("total_experts")
        allocation = cls(**content)
        allocation._require_consistent(path, total)
        return allocation

    def _require_consistent(self, path: Path, total: int) -> None:
        if total != self.total_experts:
            raise UserError(f"{path}: total_experts is {total}, but num_experts sums to {self.total_experts}")
        if self.layer_scores and len(self.layer_scores) != len(self.num_experts):
            raise UserError(
                f"{path}: num_experts has {len(self.num_experts)} layers, layer_scores {len(self.layer_scores)}"
            )


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; write it with `neuronmoe allocate`") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not an allocation; write it with `neuronmoe allocate`")
    return content


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _list_of(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _or_null(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_valid(value)


# Key of the file -> its check, and what an error says the value must be.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_experts": (
        lambda value: bool(value) and _list_of(_is_count)(value),
        "a list of whole numbers, 1 or more, one per layer",
    ),
    "total_experts": (_is_count, "a whole number"),
    "layer_scores": (_list_of(_is_number), "a list of numbers"),
    "min_experts": (_is_count, "a whole number, 1 or more"),
    "max_experts": (_is_count, "a whole number, 1 or more"),
    "rounding": (_is_text, "floor or round"),
    "strategy": (_is_text, "the name of a strategy"),
    "source": (_or_null(_is_text), "a language (in quotes) or null"),
    "targets": (_list_of(_is_text), "a list of languages (in quotes)"),
    "scores_from": (_is_text, "a path"),
    "note": (_or_null(_is_text), "a text or null"),
}
