"""A comparison on the terminal, as Markdown for papers and READMEs, and as JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, groupby
from typing import Any

from rich.console import Console

from neuronmoe_plugins.comparison.layout import Cell, Comparison, Difference, Row, Untested, Verdict
from neuronmoe_plugins.tables import Cell as TableCell
from neuronmoe_plugins.tables import Line, Table, as_markdown, print_table, print_text

MISSING = "-"
MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.DIFFERENT: "◆", Verdict.NOISE: "≈"}
STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.DIFFERENT: "bold"} | dict.fromkeys(
    (Verdict.NOISE, Verdict.UNTESTED), "dim"
)
# Under so many items, the items at hand say too little about the spread of all that there could be.
FEW_ITEMS = 30


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the paper's table, that of other tasks, and the notes; on a narrow terminal, tables in several parts."""
    if comparison.paper_rows:
        print_table(console, paper_table(comparison))
    if comparison.other_rows:
        print_table(console, others_table(comparison))
    for note in notes(comparison):
        print_text(console, note)


def markdown(comparison: Comparison) -> str:
    """The paper's table, that of other tasks, and the notes."""
    tables = [paper_table(comparison)] if comparison.paper_rows else []
    if comparison.other_rows:
        tables.append(others_table(comparison, ("Task", "Metric")))
    return "\n\n".join([*map(as_markdown, tables), *notes(comparison)])


def paper_table(comparison: Comparison) -> Table:
    """One line per model, and a column for each benchmark and language (paper, Table 1), in per cent."""
    rows = comparison.paper_rows
    columns = [row.measure.column for row in rows]
    header = ["Model", "#Exp", *(f"{column.benchmark}\n{column.language}" for column in columns if column)]
    lines: list[list[TableCell]] = [
        [
            model.name,
            MISSING if model.experts is None else str(model.experts),
            *(cell_lines(row, row.cells[place]) for row in rows),
        ]
        for place, model in enumerate(comparison.models)
    ]
    benchmarks = [len(list(own)) for _, own in groupby(columns, lambda column: column and column.benchmark)]
    return Table("", header, lines, rules=range(len(lines)), groups=[2, *benchmarks], unbroken=[0])


def others_table(comparison: Comparison, titles: tuple[str, str] = ("task", "metric")) -> Table:
    """One line per metric of every other task, and a column for each model."""
    header = [*titles, *(model.name for model in comparison.models)]
    lines: list[list[TableCell]] = [
        [row.measure.task, metric_text(row), *(cell_lines(row, cell) for cell in row.cells)]
        for row in comparison.other_rows
    ]
    groups = [2, *(1 for _ in comparison.models)]
    return Table("", header, lines, words=range(2), rules=range(len(lines)), groups=groups, unbroken=range(2))


def cell_lines(row: Row, cell: Cell | None) -> list[Line]:
    """The value with its standard error, the difference, and its interval; shares of items in per cent and points."""
    if cell is None:
        return [Line(MISSING)]
    digits = 2 if row.measure.scale == 100 else 4
    value = f"{row.measure.scale * cell.value:.{digits}f}"
    if cell.stderr is not None:
        value += f" ± {row.measure.scale * cell.stderr:.{digits}f}"
    lines = [Line(value)]
    if cell.difference is not None:
        verdict, test = cell.difference.verdict, cell.difference.test
        texts = [f"{_signed(row.measure.scale * cell.difference.value, digits)} {verdict.value}"]
        if test is not None:
            shown, low, high = (
                _signed(row.measure.scale * number, digits) for number in (cell.difference.value, test.low, test.high)
            )
            texts = [f"{MARKS[verdict]} {shown}  {p_text(test.p_value)}", f"[{low}, {high}]"]
        lines += [Line(text, STYLES[verdict]) for text in texts]
    return lines


def _signed(number: float, digits: int) -> str:
    """With a sign; what rounds to nothing is +0."""
    return f"{round(number, digits) + 0.0:+.{digits}f}"


def p_text(p_value: float) -> str:
    """`p 0.021`, and `p < 0.001` for anything smaller."""
    return "p < 0.001" if p_value < 0.001 else f"p {p_value:.3f}"


def metric_text(row: Row) -> str:
    """The metric of another task, its direction, and whether it is in per cent."""
    arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
    return row.measure.metric + arrow + (" %" if row.measure.scale == 100 else "")


def notes(comparison: Comparison) -> list[str]:
    """The lines under the tables: what the numbers and marks mean, what was not tested, what to be careful with."""
    return list(chain(_units(comparison), _legend(comparison), _untested(comparison), _cautions(comparison)))


def _units(comparison: Comparison) -> Iterator[str]:
    """What the paper's table shows, and with how many examples each benchmark was evaluated."""
    shots: dict[str, set[str]] = defaultdict(set)
    for row in comparison.paper_rows:
        if row.measure.column:
            shots[row.measure.column.benchmark].add("mixed" if row.shots is None else str(row.shots))
    if shots:
        counts = ", ".join(f"{benchmark} {' or '.join(sorted(found))}" for benchmark, found in shots.items())
        yield f"Accuracy in % ± standard error, of ARC and HellaSwag acc_norm; differences in points. Shots: {counts}."


def _differences(comparison: Comparison) -> Iterator[tuple[Row, int, Difference]]:
    """Every difference, with its row and the place of its model."""
    for row in comparison.rows:
        for place, cell in enumerate(row.cells):
            if cell is not None and cell.difference is not None:
                yield row, place, cell.difference


def _legend(comparison: Comparison) -> Iterator[str]:
    verdicts = {difference.verdict for _, _, difference in _differences(comparison) if difference.test}
    if not verdicts:
        return
    how = comparison.bootstrap
    level = f"{100 * how.confidence:g} %"
    other = ", ◆ different (lm-eval does not say what is better)" if Verdict.DIFFERENT in verdicts else ""
    yield (
        f"Against {comparison.models[0].name}: ▲ better, ▼ worse{other}, ≈ within noise, where the {level} interval "
        f"contains 0 (paired bootstrap over items, {how.resamples:,} resamples, seed {how.seed}; p-values are for each "
        "cell by itself)."
    )


def _untested(comparison: Comparison) -> Iterator[str]:
    """One line for each reason, with the models and tasks that it holds for."""
    found: dict[Untested, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, place, difference in _differences(comparison):
        reasons = [(at, cell.untested) for at in (0, place) if (cell := row.cells[at]) is not None]
        if not any(reason for _, reason in reasons):
            reasons = [(place, difference.untested)]
        for at, reason in reasons:
            if reason is not None and row.measure.name not in (names := found[reason][comparison.models[at].name]):
                names.append(row.measure.name)
    for reason, models in found.items():
        where = "; ".join(f"{model}: {', '.join(names)}" for model, names in models.items())
        yield f"Not tested, since {reason.value} ({where})."


def _cautions(comparison: Comparison) -> Iterator[str]:
    resampled: dict[str, None] = {}
    few: dict[str, int] = {}
    for row in comparison.rows:
        for cell in filter(None, row.cells):
            if cell.stderr_is_resampled:
                resampled[row.measure.name] = None
            if cell.difference and cell.difference.test and cell.items < FEW_ITEMS:
                few[row.measure.task] = cell.items
    if resampled:
        yield f"Standard errors from the resamples, since lm-eval gives none: {', '.join(resampled)}."
    if few:
        where = ", ".join(f"{task} ({items})" for task, items in few.items())
        yield f"Intervals from fewer than {FEW_ITEMS} items are too narrow: {where}."


def as_record(comparison: Comparison) -> dict[str, Any]:
    """The models, how they were compared, and for each row one cell per model, in their order."""
    rows = [
        {
            "task": row.measure.task,
            "metric": row.measure.key,
            "benchmark": row.measure.column and row.measure.column.benchmark,
            "language": row.measure.column and row.measure.column.language,
            "higher_is_better": row.higher_is_better,
            "shots": row.shots,
            "cells": [_cell_record(cell) for cell in row.cells],
        }
        for row in comparison.rows
    ]
    models = [asdict(model) | {"results": str(model.results)} for model in comparison.models]
    return {"models": models, "bootstrap": asdict(comparison.bootstrap), "rows": rows}


def _cell_record(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    origin = "resamples" if cell.stderr_is_resampled else "lm-eval"
    difference = None
    if cell.difference is not None:
        test, untested = cell.difference.test, cell.difference.untested
        tested = asdict(test) if test else dict.fromkeys(("low", "high", "p_value"))
        difference = {"value": cell.difference.value, "verdict": cell.difference.verdict.value, **tested}
        difference["untested"] = untested and untested.value
    return {
        "value": cell.value,
        "stderr": cell.stderr,
        "stderr_from": None if cell.stderr is None else origin,
        "items": cell.items,
        "difference": difference,
    }
