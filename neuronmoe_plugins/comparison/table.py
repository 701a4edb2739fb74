"""What a comparison consists of. Values, errors and differences are in a metric's own unit: shares of items in 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from neuronmoe_plugins.comparison.bootstrap import Bootstrap, Test
from neuronmoe_plugins.comparison.evidence import Untested
from neuronmoe_plugins.comparison.measures import Measure


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
