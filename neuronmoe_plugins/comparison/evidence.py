"""What a run's samples say of one measure: the items, and how lm-eval makes its value of them.

`lm_eval --log_samples` writes the samples, per-item values, beside a results file (the format of lm-eval 0.4.13). A
results file says neither how a group weighs its tasks nor, for functions of a task's own, how one value is made of
many. Both are found out by what gives the value that lm-eval reports; if nothing does, there is no test.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuronmoe_plugins.comparison.bootstrap import BY_NAME, Array, Statistic, Stratum, candidates, is_close
from neuronmoe_plugins.comparison.layout import Measure, Untested
from neuronmoe_plugins.comparison.lm_eval_results import DATE, Results, metric_of
from neuronmoe_plugins.errors import UserError, one_line

# What tells an item from another: lm-eval's hashes, and what each is of.
HASHES = {"doc_hash": "item", "prompt_hash": "prompt", "target_hash": "answer"}


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
    sizes = {len(value) if isinstance(value, list) else None for value in values}
    if sizes not in ({None}, {2}) or not all(isinstance(part, int | float) for own in values for part in _parts(own)):
        return None
    is_ratio = sizes == {2}
    pairs = np.array(values if is_ratio else [(value, 1) for value in values], dtype=np.float64)
    return Items(tuple(numbers), tuple(line.hashes for line in lines), pairs, is_ratio)


def check_items(first: Items, other: Items, task: str, first_path: object, other_path: object) -> None:
    """Raise `UserError` unless both are of the same items with the same prompts."""
    if different := set(first.numbers) ^ set(other.numbers):
        only = first_path if min(different) in first.numbers else other_path
        raise UserError(f"{task}: other items were evaluated: item {min(different)} is only in {only}")
    for number, one, two in zip(first.numbers, first.hashes, other.hashes, strict=True):
        for what, own, others in zip(HASHES.values(), one, two, strict=True):
            if own != others:
                hint = " (other examples, chat template or wording)" if what == "prompt" else ""
                raise UserError(
                    f"{task}: item {number} has another {what}{hint} in {first_path} than in {other_path}; evaluate "
                    "both in the same way"
                )


@dataclass(frozen=True)
class Evidence:
    """One run's items of one measure.

    Attributes:
        results: The run.
        items: The items of each task: one, or a group's.
        statistics: Those that make lm-eval's value of every task of its items.
        weightings: Those that make lm-eval's value of the group of its tasks': by their items, or all alike.
    """

    results: Results
    items: Mapping[str, Items]
    statistics: tuple[Statistic, ...]
    weightings: tuple[bool, ...]


class Samples:
    """The samples of a run, each file read once, when it is first asked for."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._read: dict[str, dict[str, Items]] = {}

    def evidence(self, measure: Measure) -> Evidence | Untested:
        """All items of a measure, or why there are none.

        Raises:
            UserError: if a samples file is damaged, or gives another value than the results file.
        """
        items = {}
        for name in scored_leaves(self.results, measure):
            path = samples_file(self.results, name)
            if path is None:
                return Untested.NO_SAMPLES if self.results.date else Untested.RENAMED
            if name not in self._read:
                self._read[name] = read_samples(path, name, self.results.tasks[name].items_hash)
            if measure.key not in self._read[name]:
                return Untested.AGGREGATION
            items[name] = self._read[name][measure.key]
        statistics = _fitting_statistics(self.results, measure, items)
        scores = {name: task.scores[measure.key].value for name, task in self.results.tasks.items() if name in items}
        reported = self.results.tasks[measure.task].scores[measure.key].value
        weightings = []
        for by_size in (True, False):
            weights = _weights(self.results, items, by_size)
            if is_close(sum(weights[name] * scores[name] for name in items), reported):
                weightings.append(by_size)
        if not statistics or not weightings:
            return Untested.AGGREGATION
        return Evidence(self.results, items, statistics, tuple(weightings))


def scored_leaves(results: Results, measure: Measure) -> list[str]:
    """The tasks that make up a measure's value; lm-eval leaves those of a group out that lack the metric."""
    return [leaf for leaf in results.leaves(measure.task) if measure.key in results.tasks[leaf].scores]


def strata_of(runs: Sequence[Evidence]) -> tuple[Statistic, list[Stratum]] | Untested:
    """The items of one run, or of two over the same items, as the bootstrap takes them.

    Raises:
        UserError: if the items differ.
    """
    first = runs[0]
    for other in runs[1:]:
        for task, items in first.items.items():
            check_items(items, other.items[task], task, first.results.path, other.results.path)
    statistics = [statistic for statistic in first.statistics if all(statistic in run.statistics for run in runs)]
    weightings = [by_size for by_size in first.weightings if all(by_size in run.weightings for run in runs)]
    if not statistics or not weightings:
        return Untested.AGGREGATION
    if max(len(items.numbers) for items in first.items.values()) < 2:  # of a group, too: resampled task by task
        return Untested.TOO_FEW
    weights = _weights(first.results, first.items, weightings[0])
    values = {task: np.stack([run.items[task].values for run in runs], axis=1) for task in first.items}
    return statistics[0], [Stratum(values[task], weights[task]) for task in first.items]


def _weights(results: Results, items: Mapping[str, Items], by_size: bool) -> dict[str, float]:
    """What each task's value counts in its group's; sums to 1."""
    sizes = {task: results.tasks[task].items if by_size else 1 for task in items}
    return {task: size / sum(sizes.values()) for task, size in sizes.items()}


def _fitting_statistics(results: Results, measure: Measure, items: Mapping[str, Items]) -> tuple[Statistic, ...]:
    """The statistics that fit all tasks.

    Raises:
        UserError: if the one that a task names gives another value than its results file.
    """
    fitting = None
    for name, own in items.items():
        task = results.tasks[name]
        reported, declared = task.scores[measure.key].value, task.aggregations.get(metric_of(measure.key))
        values = {
            statistic: float(statistic.of_sums(own.values.sum(axis=0)))
            for statistic in candidates(declared, own.is_ratio)
            if statistic.is_ratio == own.is_ratio
        }
        found = [statistic for statistic, value in values.items() if is_close(value, reported)]
        if declared in BY_NAME and values and not found:
            (value,) = values.values()
            raise UserError(
                f"{name}: {measure.key} is {reported:.10g} in {results.path}, but its samples make {value:.10g}: they "
                "are damaged, or of another run"
            )
        fitting = found if fitting is None else [statistic for statistic in fitting if statistic in found]
    return tuple(fitting or ())
