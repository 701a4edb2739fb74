"""From results files of several models to a comparison of each with the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuronmoe_plugins.comparison.bootstrap import Bootstrap, Test, paired_test, standard_error
from neuronmoe_plugins.comparison.evidence import Evidence, Samples, strata_of
from neuronmoe_plugins.comparison.layout import (
    Cell,
    Comparison,
    Difference,
    Measure,
    Model,
    Row,
    Untested,
    Verdict,
    select_measures,
)
from neuronmoe_plugins.comparison.lm_eval_results import (
    Results,
    Score,
    check_settings,
    count_experts,
    metric_of,
    read_results,
)
from neuronmoe_plugins.errors import UserError


def compare(paths: Sequence[Path], names: Sequence[str] = (), bootstrap: Bootstrap | None = None) -> Comparison:
    """Read results files of lm-eval, and test each model's differences to the first.

    Args:
        paths: Results files, or folders with one each.
        names: What to call the models; by default, what lm-eval calls them.
        bootstrap: How to test; ten thousand resamples and 95 % by default.

    Raises:
        UserError: if a file cannot be read, or models were evaluated on other items or in another way.
    """
    if names and len(names) != len(paths):
        raise UserError(f"--name is given {len(names)} times for {len(paths)} results: give it for each, or for none")
    bootstrap = bootstrap or Bootstrap()
    files = [read_results(path) for path in paths]
    rows = compare_results(files, bootstrap)
    labels = names or [short_name(file.model_name) for file in files]
    models = []
    for place, (label, file) in enumerate(zip(labels, files, strict=True)):
        earlier = list(labels[:place]).count(label)
        unique = f"{label} ({earlier + 1})" if earlier else label
        models.append(Model(unique, file.path, count_experts(file.model_args)))
    return Comparison(tuple(models), tuple(rows), bootstrap)


def short_name(model_name: str) -> str:
    """The last two parts of a path or hub name."""
    return "/".join(model_name.replace("\\", "/").rstrip("/").split("/")[-2:])


def compare_results(files: Sequence[Results], bootstrap: Bootstrap) -> list[Row]:
    """One row per measure that any of the files has.

    Raises:
        UserError: if a file has no task in common with the first, or has one that was evaluated in another way.
    """
    measures = select_measures(files)
    for file in files:
        if not any(measure.task in file.tasks and measure.task in files[0].tasks for measure in measures):
            raise UserError(f"{files[0].path} and {file.path} have no task in common")
    runs = [Samples(file) for file in files]
    return [_row(measure, runs, bootstrap) for measure in measures]


@dataclass(frozen=True)
class _Reading:
    """What one run says of a measure."""

    results: Results
    score: Score
    evidence: Evidence | Untested


def _row(measure: Measure, runs: Sequence[Samples], bootstrap: Bootstrap) -> Row:
    having = [run.results for run in runs if measure.task in run.results.tasks]
    for other in having[1:]:
        check_settings(having[0], other, measure.task, measure.key)
    direction = having[0].direction(measure.task, metric_of(measure.key))
    readings = [_read(measure, run, compared=len(runs) > 1) for run in runs]
    cells: list[Cell | None] = []
    for reading in readings:
        difference = None
        if reading and readings[0] and reading is not readings[0]:
            difference = _difference(readings[0], reading, direction, bootstrap)
        cells.append(_cell(measure, reading, difference, bootstrap) if reading else None)
    return Row(measure, direction, having[0].tasks[measure.task].shots, tuple(cells))


def _read(measure: Measure, run: Samples, compared: bool) -> _Reading | None:
    """None if the run lacks the task. Samples, which can be large, are only read for a test or a missing error."""
    if measure.task not in run.results.tasks:
        return None
    score = run.results.tasks[measure.task].scores[measure.key]
    evidence = run.evidence(measure) if compared or score.stderr is None else Untested.ALONE
    return _Reading(run.results, score, evidence)


def _cell(measure: Measure, reading: _Reading, difference: Difference | None, bootstrap: Bootstrap) -> Cell:
    evidence, results, stderr = reading.evidence, reading.results, reading.score.stderr
    if stderr is None and isinstance(evidence, Evidence):
        strata = strata_of([evidence])
        stderr = None if isinstance(strata, Untested) else standard_error(strata[1], strata[0], bootstrap)
    return Cell(
        value=reading.score.value,
        stderr=stderr,
        stderr_is_resampled=stderr is not None and reading.score.stderr is None,
        items=sum(results.tasks[leaf].items for leaf in results.leaves(measure.task)),
        untested=evidence if isinstance(evidence, Untested) else None,
        difference=difference,
    )


def _difference(first: _Reading, other: _Reading, direction: bool | None, bootstrap: Bootstrap) -> Difference:
    value = other.score.value - first.score.value
    tested: Test | Untested
    if isinstance(first.evidence, Untested):
        tested = first.evidence
    elif isinstance(other.evidence, Untested):
        tested = other.evidence
    elif isinstance(strata := strata_of([first.evidence, other.evidence]), Untested):
        tested = strata
    else:
        tested = paired_test(strata[1], strata[0], bootstrap) or Untested.UNDEFINED
    if isinstance(tested, Untested):
        return Difference(value, Verdict.UNTESTED, None, tested)
    if tested.is_noise:
        verdict = Verdict.NOISE
    elif direction is None:
        verdict = Verdict.DIFFERENT
    else:
        verdict = Verdict.BETTER if (tested.low > 0) == direction else Verdict.WORSE
    return Difference(value, verdict, tested, None)
