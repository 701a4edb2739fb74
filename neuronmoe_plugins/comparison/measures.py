"""Which numbers of the results files are shown: the columns of the paper's table, and a row for every other task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from neuronmoe_plugins.comparison.layout import COLUMNS, Column, is_share
from neuronmoe_plugins.comparison.results import Results, Task


@dataclass(frozen=True)
class Measure:
    """One metric of one task or group.

    Attributes:
        task: lm-eval's name.
        key: Metric and filter, such as `acc,none`.
        column: Its place in the paper's table; None for other tasks.
    """

    task: str
    key: str
    column: Column | None = None

    @property
    def scale(self) -> int:
        """What values are multiplied with when shown: 100 for shares of items, in per cent."""
        return 100 if is_share(self.key) else 1

    @property
    def name(self) -> str:
        """For sentences: the task, and its metric where the paper does not fix it."""
        return self.task if self.column else f"{self.task} ({self.metric})"

    @property
    def metric(self) -> str:
        """The metric, with its filter unless that does nothing."""
        return self.key.removesuffix(",none")


def select_measures(files: Sequence[Results]) -> list[Measure]:
    """What at least one of the files has: first the paper's columns, then all metrics of other tasks in their order.

    A task that counts in a group with values of its own is shown in the group only, as the subjects of MMLU are.
    """
    paper = [Measure(column.task, column.key, column) for column in COLUMNS if _has(files, column)]
    hidden = {measure.task for measure in paper}
    for file in files:
        for task in file.tasks.values():
            if task.scores and task.children:
                hidden |= file.descendants(task.name)
    keys = {
        (task.name, key): None for file in files for task in _others(file, hidden) for key in task.scores
    }  # a dictionary keeps the order
    return paper + [Measure(name, key) for name, key in keys]


def _has(files: Sequence[Results], column: Column) -> bool:
    return any(column.task in file.tasks and column.key in file.tasks[column.task].scores for file in files)


def _others(file: Results, hidden: set[str]) -> list[Task]:
    return [task for task in file.tasks.values() if task.name not in hidden]
