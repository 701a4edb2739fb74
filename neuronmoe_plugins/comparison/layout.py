"""What a comparison consists of, in the layout of the paper's tables (Tables 1 and 3).

The paper names benchmarks, not tasks or metrics. Its ARC and HellaSwag numbers of the base model (51.11 and 76.33) are
lm-eval's length-normalised accuracies, `acc_norm`; those of Belebele and MMLU are plain ones. Values, errors and
differences are in a metric's own unit: shares of items in 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from neuronmoe_plugins.comparison.bootstrap import Bootstrap, Test
from neuronmoe_plugins.comparison.lm_eval_results import Results, metric_of

LANGUAGES = ("EN", "EL", "TR", "HU")
# Benchmark -> its metric, and its task in each of LANGUAGES.
BENCHMARKS = {
    "ARC": ("acc_norm", ("arc_challenge", "arc_el", "arc_tr", "arc_hu")),
    "Belebele": ("acc", ("belebele_eng_Latn", "belebele_ell_Grek", "belebele_tur_Latn", "belebele_hun_Latn")),
    "HellaSwag": ("acc_norm", ("hellaswag", "hellaswag_el", "hellaswag_tr", "hellaswag_hu")),
    "MMLU": ("acc", ("mmlu", "mmlu_el", "mmlu_tr", "m_mmlu_hu")),
}
# Metrics, beside those that start with "acc", that are shares of items: shown in per cent, differences in points.
SHARES = frozenset({"chance", "em", "exact_match", "f1"})


@dataclass(frozen=True)
class Column:
    """One column of the paper's table.

    Attributes:
        benchmark: As in the paper, such as `ARC`.
        language: As in the paper, such as `EL`.
        task: lm-eval's task or group.
        key: lm-eval's metric and filter, such as `acc_norm,none`.
    """

    benchmark: str
    language: str
    task: str
    key: str


COLUMNS = tuple(
    Column(benchmark, language, task, f"{metric},none")
    for benchmark, (metric, tasks) in BENCHMARKS.items()
    for language, task in zip(LANGUAGES, tasks, strict=True)
)


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
        """What values are multiplied with when shown: 100 for shares of items, which are in 0..1, in per cent."""
        metric = metric_of(self.key)
        return 100 if metric.startswith("acc") or metric in SHARES else 1

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
    tasks = [task for file in files for task in file.tasks.values()]
    keys = dict.fromkeys((task.name, key) for task in tasks for key in task.scores)  # in their order, unlike a set
    paper = [Measure(column.task, column.key, column) for column in COLUMNS if (column.task, column.key) in keys]
    hidden = {measure.task for measure in paper}
    for file in files:
        for task in file.tasks.values():
            if task.scores and task.children:
                hidden |= file.descendants(task.name)
    return paper + [Measure(name, key) for name, key in keys if name not in hidden]


class Untested(str, Enum):
    """Why a difference cannot be tested, and what to do."""

    ALONE = "there is no other model to compare with"
    NO_SAMPLES = "there are no samples: rerun lm_eval with --log_samples"
    RENAMED = "a results file was renamed, and its samples are found by the date in its name: give it back"
    AGGREGATION = "the value is neither a mean over items nor a ratio of sums"
    TOO_FEW = "one item cannot be resampled"
    UNDEFINED = "some resamples have no value"


class Verdict(str, Enum):
    """What a difference is worth."""

    BETTER = "better"
    WORSE = "worse"
    DIFFERENT = "different"  # where lm-eval does not say which direction is better
    NOISE = "within noise"
    UNTESTED = "not tested"


@dataclass(frozen=True)
class Difference:
    """A model's value less that of the first model.

    Attributes:
        value: The difference.
        verdict: What it is worth.
        test: Interval and p-value; None if it was not tested.
        untested: Why it was not; None if it was.
    """

    value: float
    verdict: Verdict
    test: Test | None
    untested: Untested | None


@dataclass(frozen=True)
class Cell:
    """One model's value of one measure.

    Attributes:
        value: lm-eval's.
        stderr: lm-eval's standard error; where it gives none, that of the resamples; None without either.
        stderr_is_resampled: Whether it is that of the resamples.
        items: How many items were evaluated.
        untested: Why no difference of this model can be tested, with any other; None if it can.
        difference: To the first model; None for that model, and where that lacks the task.
    """

    value: float
    stderr: float | None
    stderr_is_resampled: bool
    items: int
    untested: Untested | None
    difference: Difference | None


@dataclass(frozen=True)
class Row:
    """One measure of all models.

    Attributes:
        measure: Task and metric.
        higher_is_better: Whether it is; None if lm-eval does not say.
        shots: Examples in the prompts; None for a group whose tasks differ.
        cells: One for each model; None where it was not evaluated.
    """

    measure: Measure
    higher_is_better: bool | None
    shots: int | None
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Model:
    """An evaluated model.

    Attributes:
        name: What it is called in the tables.
        results: Its results file.
        experts: All experts of its `moe` adapter; None if it has none, or that is not known.
    """

    name: str
    results: Path
    experts: int | None


@dataclass(frozen=True)
class Comparison:
    """All that the tables show.

    Attributes:
        models: In the order of the files; the others are compared with the first.
        rows: The paper's columns first, then other tasks.
        bootstrap: How differences were tested.
    """

    models: tuple[Model, ...]
    rows: tuple[Row, ...]
    bootstrap: Bootstrap

    @property
    def paper_rows(self) -> list[Row]:
        """What the paper's table has a column for."""
        return [row for row in self.rows if row.measure.column]

    @property
    def other_rows(self) -> list[Row]:
        """What it has none for."""
        return [row for row in self.rows if not row.measure.column]
