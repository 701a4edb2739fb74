"""The per-item values that `lm_eval --log_samples` writes beside a results file (the format of lm-eval 0.4.13)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuronmoe_plugins.comparison.results import DATE, Results
from neuronmoe_plugins.errors import UserError, one_line

# What tells an item from another: lm-eval's hashes, and what each is of.
HASHES = {"doc_hash": "item", "prompt_hash": "prompt", "target_hash": "answer"}

Array = np.ndarray


@dataclass(frozen=True)
class Items:
    """A metric of one task's items, in the order of their numbers.

    Attributes:
        numbers: lm-eval's `doc_id` of each.
        hashes: The values of HASHES of each.
        values: (items, 2) float64: a value and 1, or, if `is_ratio`, both numbers of lm-eval's pair.
        is_ratio: Whether lm-eval gave pairs.
    """

    numbers: tuple[int, ...]
    hashes: tuple[tuple[str, ...], ...]
    values: Array
    is_ratio: bool


@dataclass(frozen=True)
class _Line:
    number: int
    hashes: tuple[str, ...]
    filter: str
    metrics: Mapping[str, object]


def samples_file(results: Results, task: str) -> Path | None:
    """The samples of a run's task; None if it has none, or the results file was renamed, so that they cannot be told.

    Raises:
        UserError: if there are samples of a run whose own results are not there, as after a mix-up of files.
    """
    if results.date is None:
        return None
    folder = results.path.parent
    path = folder / f"samples_{task}_{results.date}.jsonl"
    if path.exists():
        return path
    for other in sorted(folder.glob("samples_*.jsonl")):
        dated = re.fullmatch(rf"samples_{re.escape(task)}_({DATE})\.jsonl", other.name)
        if dated and not any(folder.glob(f"*_{dated[1]}.json")):
            raise UserError(
                f"{other} is of another run than {results.path}, as their dates say; keep each with its own"
            )
    return None


def read_samples(path: Path, task: str, items_hash: str | None) -> dict[str, Items]:
    """Read a samples file.

    Args:
        path: The file.
        task: The task that it is of.
        items_hash: lm-eval's hash of all items in the results file; None leaves them unchecked.

    Returns:
        Metric and filter, such as `acc,none`, to the items that have it; without metrics that are no numbers.

    Raises:
        UserError: naming the file, and the line that is damaged; also if items are missing or stand there twice.
    """
    digest = hashlib.sha256()
    found: dict[str, dict[int, tuple[_Line, object]]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for place, text in enumerate(file, start=1):
                line = _parse(f"{path}:{place}", text)
                digest.update("".join(line.hashes).encode())
                for metric, value in line.metrics.items():
                    by_number = found.setdefault(f"{metric},{line.filter}", {})
                    if line.number in by_number:
                        raise UserError(f"{path}:{place}: item {line.number} stands there twice")
                    by_number[line.number] = (line, value)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({one_line(error)})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if items_hash not in (None, digest.hexdigest()):
        raise UserError(f"{path} has not the items of {task} in its results file: it is damaged, or of another run")
    return {key: items for key, by_number in found.items() if (items := _items(by_number)) is not None}


def _parse(place: str, text: str) -> _Line:
    try:
        record = json.loads(text.rstrip("\n"))
        metrics = {metric: record[metric] for metric in record["metrics"]}
        line = _Line(int(record["doc_id"]), tuple(str(record[name]) for name in HASHES), str(record["filter"]), metrics)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: the line is damaged ({error.msg}, character {error.pos + 1})") from error
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "has another form"
        raise UserError(f"{place}: not a sample of lm-eval: it {what}") from error
    for metric, value in metrics.items():
        if any(isinstance(number, float) and not math.isfinite(number) for number in _parts(value)):
            raise UserError(f"{place}: {metric} is {value}, not a finite number")
    return line


def _parts(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _items(by_number: Mapping[int, tuple[_Line, object]]) -> Items | None:
    """The items in order, or None if their values are neither all numbers nor all pairs of numbers."""
    numbers = sorted(by_number)
    lines, values = zip(*(by_number[number] for number in numbers), strict=True)
    if not all(isinstance(part, int | float) for value in values for part in _parts(value)):
        return None
    if {isinstance(value, list) for value in values} == {True} and {len(value) for value in values} == {2}:
        pairs, is_ratio = np.array(values, dtype=np.float64), True
    elif not any(isinstance(value, list) for value in values):
        column = np.array(values, dtype=np.float64)
        pairs, is_ratio = np.stack([column, np.ones_like(column)], axis=1), False
    else:
        return None
    return Items(tuple(numbers), tuple(line.hashes for line in lines), pairs, is_ratio)
