"""What a run's samples say of one measure: the items, and how lm-eval makes its value of them.

A results file says neither how a group weighs its tasks nor, for functions of a task's own, how one value is made of
many. Both are found out by what gives the value that lm-eval reports; if nothing does, there is no test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from neuronmoe_plugins.comparison.bootstrap import Stratum
from neuronmoe_plugins.comparison.checks import check_items
from neuronmoe_plugins.comparison.layout import metric_of
from neuronmoe_plugins.comparison.measures import Measure
from neuronmoe_plugins.comparison.results import Results
from neuronmoe_plugins.comparison.samples import Items, read_samples, samples_file
from neuronmoe_plugins.comparison.statistic import BY_NAME, Statistic, candidates, is_close
from neuronmoe_plugins.errors import UserError


class Untested(str, Enum):
    """Why a difference cannot be tested, and what to do."""

    ALONE = "there is no other model to compare with"
    NO_SAMPLES = "there are no samples: rerun lm_eval with --log_samples"
    RENAMED = "a results file was renamed, and its samples are found by the date in its name: give it back"
    AGGREGATION = "the value is neither a mean over items nor a ratio of sums"
    TOO_FEW = "one item cannot be resampled"
    UNDEFINED = "some resamples have no value"


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
        weightings = _fitting_weightings(self.results, measure, items)
        if not statistics or not weightings:
            return Untested.AGGREGATION
        return Evidence(self.results, items, statistics, weightings)


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
    if sum(len(items.numbers) for items in first.items.values()) < 2:
        return Untested.TOO_FEW
    weights = _weights(first.results, first.items, weightings[0])
    values = {task: np.stack([run.items[task].values for run in runs], axis=1) for task in first.items}
    return statistics[0], [Stratum(values[task], weights[task]) for task in first.items]


def _weights(results: Results, items: Mapping[str, Items], by_size: bool) -> dict[str, float]:
    """What each task's value counts in its group's; sums to 1."""
    sizes = {task: results.tasks[task].items if by_size else 1 for task in items}
    return {task: size / sum(sizes.values()) for task, size in sizes.items()}


def _fitting_weightings(results: Results, measure: Measure, items: Mapping[str, Items]) -> tuple[bool, ...]:
    reported = results.tasks[measure.task].scores[measure.key].value
    values = {task: results.tasks[task].scores[measure.key].value for task in items}
    fitting = []
    for by_size in (True, False):
        weights = _weights(results, items, by_size)
        if is_close(sum(weights[task] * value for task, value in values.items()), reported):
            fitting.append(by_size)
    return tuple(fitting)


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
